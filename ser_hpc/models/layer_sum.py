"""Sum the frames of all layers of an encoder, each normalised, by weights that are learnt: what a head then sees of it.

What transcription needs has replaced in the upper layers what emotion needs, so a head on the last layer alone starts with the
worst of the upper half. Weights: a softmax, as in ELMo (Peters et al. 2018) and SUPERB (Yang et al. 2021). Every frame of a
layer is first brought to mean 0 and variance 1 over its width: layers differ in scale by orders of magnitude, and raw the sum
collapses onto the one that is loudest. No statistics of clips are needed for that, so nothing leaks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.models.packed import at_least_float32


class LayerSum(nn.Module):
    """A weighted sum of `num_layers` layers' frames; `normalised`: they come normalised (from the cache of features)."""

    def __init__(self, num_layers: int, *, normalised: bool = False) -> None:
        super().__init__()
        self.normalised = normalised
        self.layers = range(num_layers)
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, states: Iterable[Tensor]) -> Tensor:
        """Sum the frames of each layer, (T, width), from the lowest: (T, width), float32 or better."""
        shares = self.weights.to(at_least_float32(self.weights.dtype)).softmax(0)
        return torch.stack(
            [share * (state if self.normalised else normalise(state)) for share, state in zip(shares, states, strict=True)]
        ).sum(0)


def normalise(frames: Tensor) -> Tensor:
    """Bring each frame (T, width) to mean 0 and variance 1 over its width, in float32 or better."""
    with torch.autocast(frames.device.type, enabled=False):
        return F.layer_norm(frames.to(at_least_float32(frames.dtype)), frames.shape[-1:])
