"""Pool a clip's packed frames into one vector, over its real frames alone: mean, mean and deviation, attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ser_hpc.models.packed import Packing, at_least_float32


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
        return torch.cat([mean, (variance + 1e-8).sqrt()], dim=1)


class Attention(Pooling):
    """A weighted mean: the weights are a softmax over a clip's frames of width -> hidden -> 1 with tanh between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.out_width = width
        self.hidden, self.score = nn.Linear(width, hidden), nn.Linear(hidden, 1)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packing = Packing(tuple(lengths.tolist()), frames.device)
        dtype = at_least_float32(frames.dtype)
        scores: Tensor = self.score(self.hidden(frames.to(self.hidden.weight.dtype)).tanh()).squeeze(-1).to(dtype)
        # The largest score of a clip keeps its exponentials finite, and cancels out.
        largest = torch.segment_reduce(scores.detach(), "max", lengths=packing.counts, unsafe=True)
        weights = (scores - packing.repeated(largest)).exp()
        total = packing.sum(weights[:, None])
        return packing.sum(weights[:, None] * frames.to(dtype)) / total
