"""Layer normalisation that keeps its input's precision.

Under autocast torch's own gives float32, and everything that is added to it becomes float32: under bf16, twice the memory
traffic from layer to layer, to be narrowed again by the next product. Inside, means and variances are in float32 anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrameNorm(nn.LayerNorm):
    """nn.LayerNorm in the precision of its input. Make it with `adopt`."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def adopt(model: nn.Module) -> None:
    """Give the model's layer normalisations this forward; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = FrameNorm
