"""Pack clips: the frames of all clips one after another, (T, ...), never padded; and where each clip's are.

Every model and head is built on it. A linear layer, a normalisation of each frame and a dropout know nothing of clips. What
must know is served from here: gaps between clips, where a convolution would reach across; means over each clip; groups of
clips for one attention call. So a clip's logits do not depend on what it is batched with: what looks at a whole clip looks at
its real frames only, and what stands in a gap is zero wherever a convolution could reach it.
Lengths stay on the CPU, where the offsets came from, so nothing here waits for the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy `x` to `device`. From the CPU by way of pinned memory: any other copy waits until the GPU has done its work."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and x.device.type == "cpu" else x.to(device)


def as_floats(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """Return samples in [-1, 1], of `dtype`: int16 is divided by its full scale, floats are there already."""
    return samples.to(dtype) if samples.is_floating_point() else samples.to(dtype) / 32768


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the type to add up in: float32, or what is wider."""
    return torch.promote_types(dtype, torch.float32)


def last_of(states: Iterable[Tensor]) -> Tensor:
    """Return the last of a model's states; those before it are let go as they come."""
    return deque(states, maxlen=1)[0]


def frame_mask(lengths: Tensor, frames: int, device: torch.device) -> Tensor:
    """Return (B, frames) bool, True where a frame is real. `lengths` (B,), on the CPU."""
    return torch.arange(frames, device=device) < to_device(lengths, device)[:, None]


def fft_rows(count: int, device: torch.device) -> int:
    """Round up how many Fourier transforms to ask for at a time: on a GPU to one of four sizes an octave.

    cuFFT makes a plan for every number of them, keeps it in memory beside torch's allocator, and fails where none is left
    (pytorch issues 94893 and 119420); no two micro-batches have as many frames. A CPU plans nothing: `count`.
    """
    if device.type == "cpu":
        return count
    step = max(1, 1 << (count - 1).bit_length() >> 3)
    return -(-count // step) * step


@dataclass(eq=False)  # not frozen: torch.compile looks into those, and would compile anew for every number of clips
class Packing:
    """The layout of a row of clips' frames, (T, ...) with T = sum(lengths): which are which clip's.

    `like`: clips of which the shortest has at least this part of the longest's frames share an attention call. None: 0.8 on a
    GPU, where a call costs more than some padding in it; 1 on a CPU, where only neighbours of equal length share one.
    """

    lengths: tuple[int, ...]
    device: torch.device
    like: float | None = None

    @cached_property
    def total(self) -> int:
        return sum(self.lengths)

    @cached_property
    def ends(self) -> Tensor:
        """Return (B + 1,) int32 on the device: clip i has the frames from ends[i] up to ends[i + 1]."""
        return to_device(_starts(self.lengths).to(torch.int32), self.device)

    @cached_property
    def counts(self) -> Tensor:
        """Return the lengths, (B,) int64 on the device."""
        return to_device(torch.tensor(self.lengths), self.device)

    def repeated(self, x: Tensor) -> Tensor:
        """Repeat (B, ...), one for each clip, for each of its frames: (T, ...). Gradients are added up as by `sum`."""
        repeated: Tensor = _Repeated.apply(x, self) if x.requires_grad else self._repeat(x)  # type: ignore[no-untyped-call]
        return repeated

    def _repeat(self, x: Tensor) -> Tensor:
        return torch.repeat_interleave(x, self.counts, dim=0, output_size=self.total)

    @cached_property
    def positions(self) -> Tensor:
        """Return (T,) int64 on the device: each frame's place within its clip."""
        return torch.arange(self.total, device=self.device) - self.repeated(self.ends[:-1])

    def sum(self, x: Tensor) -> Tensor:
        """Sum over each clip's frames, (T, ...) -> (B, ...), one after another, so that it is the same every time."""
        if self.device.type == "cpu":  # bit for bit the same, four times as fast
            return x.new_zeros(len(self.lengths), *x.shape[1:]).index_add(0, self._clips, x)
        return torch.segment_reduce(x, "sum", lengths=self.counts, unsafe=True)  # unsafe: no check, which would wait

    @cached_property
    def _clips(self) -> Tensor:
        """Return (T,) int64 on the device: which clip each frame is of."""
        return self._repeat(torch.arange(len(self.lengths), device=self.device))

    def mean(self, x: Tensor) -> Tensor:
        """Average over each clip's frames, (T, D) -> (B, D), in float32 or better."""
        return self.sum(x.to(at_least_float32(x.dtype))) / self.counts[:, None]

    def grouped(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Cut tensors (T, ...) into `groups`: for each of them (clips, frames, ...) of every tensor.

        What stands in the padding is a frame of the same clip.
        """
        take, sizes, parts = self._places[0], [group.clips * group.frames for group in self.groups], []
        for x in tensors:
            rows = torch.split(x if take is None else x.index_select(0, take), sizes)
            parts.append([row.view(g.clips, g.frames, *x.shape[1:]) for row, g in zip(rows, self.groups, strict=True)])
        return list(zip(*parts, strict=True))

    def ungrouped(self, parts: list[Tensor]) -> Tensor:
        """Put groups together again, the reverse of `grouped`: without padding, every clip in its place."""
        joined, found = torch.cat([part.flatten(0, 1) for part in parts]), self._places[1]
        return joined if found is None else joined.index_select(0, found)

    @cached_property
    def groups(self) -> list[Group]:
        """Group clips that share one attention call."""
        return [Group.of([self.lengths[i] for i in members], self.device) for members in self._members]

    @cached_property
    def _like(self) -> float:
        return self.like or (1.0 if self.device.type == "cpu" else 0.8)

    @cached_property
    def _members(self) -> list[list[int]]:
        """List the clips of each group, longest first; where nothing is padded, no clip changes its place."""
        clips = range(len(self.lengths))
        members: list[list[int]] = []
        for i in clips if self._like == 1 else sorted(clips, key=lambda i: -self.lengths[i]):
            longest = self.lengths[members[-1][0]] if members else -1
            if longest >= self.lengths[i] >= self._like * longest:
                members[-1].append(i)
            else:
                members.append([i])
        return members

    @cached_property
    def _places(self) -> tuple[Tensor | None, Tensor | None]:
        """Index the frames that the groups take, in order, and where among them each frame is; None: all as they are."""
        if self._like == 1:
            return None, None
        starts, take, found = _starts(self.lengths), [], torch.empty(self.total, dtype=torch.int64)
        row = 0
        for members in self._members:
            for i in members:
                length, padded = self.lengths[i], self.lengths[members[0]]
                take.append(starts[i] + torch.arange(padded).clamp(max=length - 1))
                found[starts[i] : starts[i] + length] = torch.arange(row, row + length)
                row += padded
        return to_device(torch.cat(take), self.device), to_device(found, self.device)


class _Repeated(torch.autograd.Function):
    """torch adds the gradients up in any order in the type that they have: in bf16, where a clip has a thousand frames, that
    is several per cent from their sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return packing._repeat(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.packing.sum(grad.to(at_least_float32(grad.dtype))).to(grad.dtype), None


@dataclass(frozen=True, slots=True)
class Group:
    """A group of clips, padded to so many frames; `mask` (clips, 1, 1, frames) is False in the padding, None where none is."""

    clips: int
    frames: int
    mask: Tensor | None

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> Group:
        """Make the group of clips of these lengths, longest first."""
        if lengths[-1] == lengths[0]:
            return cls(len(lengths), lengths[0], None)
        return cls(len(lengths), lengths[0], frame_mask(torch.tensor(lengths), lengths[0], device)[:, None, None])


def insert_gaps(x: Tensor, lengths: Sequence[int], rooms: Sequence[int]) -> Tensor:
    """Spread clips out, (sum(lengths), ...) -> (sum(rooms), ...): each at the start of its room, then zeros."""
    sizes = [room - length for length, room in zip(lengths, rooms, strict=True)]
    zeros = x.new_zeros(max(sizes), *x.shape[1:])
    gaps = [zeros[:size] for size in sizes]
    return torch.cat(list(chain.from_iterable(zip(torch.split(x, list(lengths)), gaps, strict=True))))


def remove_gaps(x: Tensor, lengths: Sequence[int], rooms: Sequence[int]) -> Tensor:
    """Close up, (sum(rooms) or more, ...) -> (sum(lengths), ...): the reverse of `insert_gaps`; gaps are dropped."""
    gaps = [room - length for length, room in zip(lengths, rooms, strict=True)]
    sizes = list(chain.from_iterable(zip(lengths, gaps, strict=True)))
    return torch.cat(torch.split(x, [*sizes, len(x) - sum(sizes)])[: len(sizes) : 2])


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0)
