"""Mask by SpecAugment (Park et al. 2019), for pretrained encoders: in training, stretches of a clip's frames and features
become zero.

Drawn clip by clip from torch's CPU generator, which the loop seeds for each micro-batch. Zeros, not transformers' learned
vector: a parameter that some steps do not use would hold up ZeRO-3 and plain data parallelism.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ser_hpc.config.settings import SpecAugmentSettings
from ser_hpc.models.packed import to_device


class SpecAugment:
    """`settings`: parts and widths of what is masked; nothing is drawn for a part of 0."""

    def __init__(self, settings: SpecAugmentSettings) -> None:
        self.settings = settings

    def __call__(self, x: Tensor, lengths: Sequence[int], rooms: Sequence[int] | None = None) -> Tensor:
        """Mask packed clips (T, D). `lengths`: each clip's real rows, the first of its `rooms` (None: all)."""
        settings, rooms = self.settings, rooms or lengths
        if settings.time_prob:
            keep = [
                _keep_mask(length, settings.time_prob, settings.time_frames, room)
                for length, room in zip(lengths, rooms, strict=True)
            ]
            x = x * to_device(torch.cat(keep), x.device).to(x.dtype)[:, None]
        if settings.feature_prob:
            width = x.shape[1]
            features = torch.stack([_keep_mask(width, settings.feature_prob, settings.feature_width, width) for _ in lengths])
            counts = to_device(torch.tensor(rooms), x.device)
            x = x * torch.repeat_interleave(to_device(features, x.device).to(x.dtype), counts, dim=0, output_size=len(x))
        return x


def _keep_mask(length: int, part: float, width: int, room: int) -> Tensor:
    """Draw (room,) bool: False in stretches of `width` among the first `length`, together about `part` of them."""
    keep = torch.ones(room, dtype=torch.bool)
    count = min(int(part * length / width + float(torch.rand(()))), length // width)
    for start in torch.randperm(max(0, length - width + 1))[:count].tolist():
        keep[start : start + width] = False
    return keep
