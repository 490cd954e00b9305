"""A head of a pooling and hidden layers: the field's usual one above a mean, an attention, or mean and deviation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.config.heads import MlpSettings
from ser_hpc.models.heads.mean_pool import WideLinear
from ser_hpc.models.heads.pooling import Pooling
from ser_hpc.models.norms import FrameBatchNorm

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "layer": nn.LayerNorm,
    "batch": FrameBatchNorm,
}


class Mlp(nn.Module):
    """Pooling, hidden layers with normalisation, ReLU and dropout, linear classifier in float32."""

    def __init__(self, settings: MlpSettings, pooling: Pooling, outputs: int) -> None:
        super().__init__()
        self.pooling = pooling
        widths = [pooling.out_width, *settings.hidden]
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(_NORMS[settings.norm](width) for width in settings.hidden)
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = WideLinear(widths[-1], outputs)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool frames (T, width), all clips' one after another, with their lengths (B,): (B, outputs)."""
        x = self.pooling(frames, lengths)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = self.dropout(F.relu(norm(layer(x.to(layer.weight.dtype)))))
        outputs: Tensor = self.classifier(x)
        return outputs
