"""Pool a clip's packed frames into one vector, over its real frames alone: mean, mean and deviation, both by attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ser_hpc.models.packed import Packing, at_least_float32

FLOOR = 1e-8  # of a variance


class Pooling(nn.Module):
    """A pooling of frames (T, width), all clips' one after another, with their lengths (B,) on the CPU: (B, out_width)."""

    out_width: int


class Mean(Pooling):
    """The mean over a clip's frames."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_width = width

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return Packing(tuple(lengths.tolist()), frames.device).mean(frames)


class MeanStd(Pooling):
    """Mean and standard deviation over a clip's frames (of one frame the deviation is 0)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_width = 2 * width

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packing = Packing(tuple(lengths.tolist()), frames.device)
        frames = frames.to(at_least_float32(frames.dtype))
        mean = packing.mean(frames)
        variance = packing.mean((frames - packing.repeated(mean)).square())
        return torch.cat([mean, _deviation(variance)], dim=1)


class Attention(Pooling):
    """A weighted mean: the weights are a softmax over a clip's frames of width -> hidden -> 1 with tanh between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.out_width = width
        self.hidden, self.score = nn.Linear(width, hidden), nn.Linear(hidden, 1)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packing = Packing(tuple(lengths.tolist()), frames.device)
        return _weighted_mean(packing, self._weights(packing, frames), frames)

    def _weights(self, packing: Packing, frames: Tensor) -> Tensor:
        """Weigh each frame, (T, 1), float32 or better: a clip's weights are of any sum."""
        scores: Tensor = self.score(self.hidden(frames.to(self.hidden.weight.dtype)).tanh())
        scores = scores.to(at_least_float32(frames.dtype))
        # The largest score of a clip keeps its exponentials finite, and cancels out.
        largest = torch.segment_reduce(scores.detach().squeeze(-1), "max", lengths=packing.counts, unsafe=True)
        return (scores - packing.repeated(largest)[:, None]).exp()


class AttentiveStatistics(Attention):
    """Weighted mean and standard deviation, by the same weights (Okabe et al. 2018): of one frame the deviation is 0."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.out_width = 2 * width

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packing = Packing(tuple(lengths.tolist()), frames.device)
        weights = self._weights(packing, frames)
        mean = _weighted_mean(packing, weights, frames)
        # Not as the mean square less the squared mean, which cancel to rounding where frames hardly differ.
        variance = _weighted_mean(packing, weights, (frames.to(mean.dtype) - packing.repeated(mean)).square())
        return torch.cat([mean, _deviation(variance)], dim=1)


def _weighted_mean(packing: Packing, weights: Tensor, x: Tensor) -> Tensor:
    """Average (T, width) over each clip by weights (T, 1): (B, width), in the type of the weights."""
    return packing.sum(weights * x.to(weights.dtype)) / packing.sum(weights)


def _deviation(variance: Tensor) -> Tensor:
    """Take the root of a variance, which a floor keeps above rounding and so its gradient finite."""
    return (variance + FLOOR).sqrt()
