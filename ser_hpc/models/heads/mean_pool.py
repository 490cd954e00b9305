"""Average a clip's frames, packed, and classify them: the head of transformers' encoders. Pooling and logits are in float32.

`WideLinear`, the layer that makes logits, serves every head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.config.heads import MeanPoolSettings
from ser_hpc.models.packed import Packing, at_least_float32


class WideLinear(nn.Linear):
    """A linear layer that computes in float32 or better, whatever its parameters were cast to: for logits."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = at_least_float32(self.weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class MeanPool(nn.Module):
    """Dropout, projection, mean over a clip's frames, linear classifier.

    Without dropout exactly what transformers' Wav2Vec2ForSequenceClassification computes (as HuBERT's, WavLM's and Whisper's),
    initialised alike and with the same names, `projector` and `classifier`.
    """

    def __init__(self, settings: MeanPoolSettings, width: int, num_classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(settings.dropout)
        self.projector = nn.Linear(width, settings.projection)
        self.classifier = WideLinear(settings.projection, num_classes)
        for layer in (self.projector, self.classifier):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool frames (T, width), all clips' one after another, with their lengths (B,): (B, num_classes)."""
        packing = Packing(tuple(lengths.tolist()), frames.device)
        projected = self.projector(self.dropout(frames.to(self.projector.weight.dtype)))
        logits: Tensor = self.classifier(packing.mean(projected))
        return logits
