"""Define fronts, which run an encoder on clips: samples in, frames out. A front has no parameters of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn


@runtime_checkable
class Frontend(Protocol):
    """A front that feeds an encoder: it has no parameters, so nothing of it is trained, cast or saved.

    `group`: clips that normalise each other in training, and so make up a micro-batch; None: any cut of a step will do.
    """

    max_seconds: float | None = None
    padded: bool = False
    group: int | None = None

    def costs(self, samples: np.ndarray) -> np.ndarray:
        """Count samples that clips of so many take in a micro-batch, int64; if `padded`, with those of its longest."""
        return samples

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames, as the head takes them, and the number of each clip's, (B,) int64 on the CPU.

        `samples` (total,) and `offsets` (B + 1,): as `Classifier.forward` takes them.
        """
        ...


class PooledFeatureFrontend(Frontend):
    """The front of a head alone. What goes in is each clip's mean frame, float (B, numbers), in the place of its samples: to
    the head, a clip of one frame. Of `states` layers it is their mean frames side by side, `width` each."""

    def __init__(self, numbers: int, states: int = 1) -> None:
        self.numbers, self.states, self.width = numbers, states, numbers // states

    def costs(self, samples: np.ndarray) -> np.ndarray:
        """Count as many samples as a state has numbers."""
        return np.full_like(samples, self.numbers)

    def hidden_states(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Iterator[Tensor], Tensor]:
        """Return the mean frames of each layer, see `LayeredFrontend`."""
        return iter(torch.split(samples, self.width, dim=1)), offsets.diff()

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        return samples, offsets.diff()
