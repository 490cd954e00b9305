"""How many Fourier transforms are asked for at a time.

cuFFT makes a plan for every number of them, keeps it in memory beside torch's allocator, and fails where none is left (pytorch
issues 94893 and 119420). No two micro-batches have as many frames, so on a GPU their number is rounded up to one of a few.
"""

from __future__ import annotations

import torch


def rows(count: int, device: torch.device) -> int:
    """As many as `count` or somewhat more: on a GPU one of four sizes an octave, on a CPU, which plans nothing, `count`."""
    if device.type == "cpu":
        return count
    step = max(1, 1 << (count - 1).bit_length() >> 3)
    return -(-count // step) * step
