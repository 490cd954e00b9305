"""Classify a clip by the means of its frames in several layers: a linear probe of a frozen encoder (engine/probe.py)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.config.heads import ProbeSettings
from ser_hpc.models.heads.mean_pool import WideLinear
from ser_hpc.models.packed import Packing


class LinearProbe(nn.Module):
    """Statistics of the chosen layers side by side, standardised by `mean` and `scale`, then a linear classifier.

    `layers`: as `LayeredFrontend` numbers them; None: only what calling the front returns. `std`: standard deviations too.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, settings: ProbeSettings, width: int, num_layers: int, num_classes: int) -> None:
        super().__init__()
        self.layers = _numbers(settings, num_layers)
        self.std = settings.statistics == "mean_std"
        self.num_statistics = len(self.layers or (0,)) * (2 if self.std else 1)
        self.by_clip = settings.normalization == "clip"
        self.width = width * self.num_statistics
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("scale", torch.ones(self.width))
        self.classifier = WideLinear(self.width, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, states: Iterable[Tensor], lengths: Tensor) -> Tensor:
        """Pool frames (T, width) of each chosen layer with clips' lengths (B,): (B, num_classes)."""
        return self.classify(self.normalize(pool_states(states, lengths, self.std)))

    def normalize(self, pooled: Tensor) -> Tensor:
        """Normalise what is pooled, (B, self.width) -> the same shape, by each clip's own, if the settings want it."""
        if not self.by_clip:
            return pooled
        of_each = pooled.reshape(-1, self.num_statistics, self.width // self.num_statistics)
        return F.layer_norm(of_each, of_each.shape[-1:]).flatten(1)

    def classify(self, pooled: Tensor) -> Tensor:
        """Classify what is pooled and normalised already, (B, self.width) -> (B, num_classes)."""
        logits: Tensor = self.classifier((pooled - self.mean) / self.scale)
        return logits


def _numbers(settings: ProbeSettings, num_layers: int) -> tuple[int, ...] | None:
    if settings.layers == "last":
        return None
    return tuple(range(num_layers + 1)) if settings.layers == "all" else tuple(sorted(set(settings.layers)))


def pool_states(states: Iterable[Tensor], lengths: Tensor, std: bool) -> Tensor:
    """Average frames (T, width) over each clip, state by state, and, with `std`, take their standard deviation after it:
    (B, width * states (* 2)), float32 or better. `lengths` (B,), on the CPU."""
    parts = []
    for frames in states:
        packing = Packing(tuple(lengths.tolist()), frames.device)
        mean = packing.mean(frames)
        parts.append(mean)
        if std:
            parts.append(packing.mean((frames.to(mean.dtype) - packing.repeated(mean)).square()).sqrt())
    return torch.cat(parts, dim=1)
