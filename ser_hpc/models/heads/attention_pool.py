"""Pool a clip's frames by attention and classify them (Chen et al. 2018): the recurrent network's head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.config.settings import AcrnnModel
from ser_hpc.models.heads.mean_pool import WideLinear
from ser_hpc.models.packed import at_least_float32, frame_mask


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
