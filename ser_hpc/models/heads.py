"""Turn a clip's frames into logits: the heads that `classifier.build` chooses from. Pooling and logits are in float32, over
real frames only.

Each takes the frames as its encoder gives them: packed (`MeanPool`) or padded (`AttentionPool`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.config.settings import AcrnnModel, HeadSettings
from ser_hpc.models.packed import Packing, at_least_float32, frame_mask


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

    def __init__(self, settings: HeadSettings, width: int, num_classes: int) -> None:
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


class AttentionPool(nn.Module):
    """Attention over a clip's real frames, a hidden layer, dropout, linear classifier (Chen et al. 2018, section II.C)."""

    def __init__(self, settings: AcrnnModel, width: int, num_classes: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, width), nn.Sigmoid(), nn.Linear(width, 1, bias=False))
        self.hidden = nn.Linear(width, settings.hidden)
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = WideLinear(settings.hidden, num_classes)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool padded frames (B, T, width) with their lengths (B,): (B, num_classes)."""
        dtype = at_least_float32(frames.dtype)
        mask = frame_mask(lengths, frames.shape[1], frames.device)
        scores: Tensor = self.score(frames).squeeze(-1).to(dtype)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)
        pooled = torch.einsum("bt,btd->bd", weights, frames.to(dtype))
        hidden = F.leaky_relu(self.hidden(pooled.to(self.hidden.weight.dtype)), 0.01)
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits
