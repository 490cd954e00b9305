"""Ragged batches: clips of different lengths, and what must not depend on how they were padded.

Two rules keep a clip's logits independent of what it is batched with: what looks at a whole clip (normalisation, pooling)
looks at its real samples or frames only, and what stands in the padding is zero wherever a convolution could reach it.
Lengths stay on the CPU, where the offsets came from, so that nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def moved(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`. From the CPU by way of pinned memory: a copy from any other waits until the GPU has done its work."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and x.device.type == "cpu" else x.to(device)


def clips(samples: Tensor, offsets: Tensor, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Each clip's samples in [-1, 1], on `device`. `samples` (total,), int16 or floating; `offsets` (B + 1,), on the CPU."""
    here = moved(samples, device)
    scaled = here.to(dtype) if here.is_floating_point() else here.to(dtype) / 32768
    return list(torch.split(scaled, offsets.diff().tolist()))


def frame_mask(lengths: Tensor, frames: int, device: torch.device) -> Tensor:
    """(B, frames) bool: True where a frame is real. `lengths` (B,), on the CPU."""
    return torch.arange(frames, device=device) < moved(lengths, device)[:, None]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class WideLinear(nn.Linear):
    """A linear layer that computes in float32 or better, whatever its parameters were cast to: for logits."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = at_least_float32(self.weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
