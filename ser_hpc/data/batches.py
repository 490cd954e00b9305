"""From positions to tensors: ragged batches, made ahead of the model.

A `Batch` is never padded: the clips' samples stand one after another. Collating is concatenating; whether an encoder pads,
sorts or packs is its own affair, on its own device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, pairwise
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ser_hpc.clock import awake_s
from ser_hpc.config.augment import Transform
from ser_hpc.data.augment import Augment
from ser_hpc.data.kept import KeepingReader
from ser_hpc.data.order import MicroBatch
from ser_hpc.data.sounds import SoundMaker, Sounds, Wanted
from ser_hpc.data.workers import Ahead
from ser_hpc.shards.audio import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ClipReader, extents
from ser_hpc.shards.storage import Place


@dataclass(frozen=True, slots=True)
class Batch:
    """`samples` (total,) int16 at 16 kHz, or float32, 1 being int16's full scale, once augmented; clip i is
    samples[offsets[i]:offsets[i+1]]; `offsets` (B + 1,) int64.

    `targets` by task name, (B,) int64; `weights` (B,) float32, 0 for a filler or a damaged clip; `positions` (B,) rows of the
    index; `rows` (B,) places in the step or part, none of a filler; `damaged` (B,) int64: read.Cause, or 0; `number` is the
    micro-batch's number in its step, which seeds its dropout. Of pooled states `samples` is (B, width), one row a clip.
    """

    samples: Tensor
    offsets: Tensor
    targets: dict[str, Tensor]
    weights: Tensor
    positions: np.ndarray
    rows: np.ndarray
    damaged: Tensor
    number: int

    def __post_init__(self) -> None:
        assert all(a < b for a, b in pairwise(self.offsets.tolist())), "every clip has samples"

    @property
    def seconds(self) -> float:
        """Of audio, padding not counted."""
        return len(self.samples) / RATE


class Source(Protocol):
    """Where the loop's batches come from; leaving it as a context manager frees what it holds."""

    def ahead(self, micros: Iterable[MicroBatch], *, training: bool = False) -> Iterator[Batch]: ...

    def delivers(self, micros: Sequence[MicroBatch], limit_s: float) -> float | None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class BatchSource:
    """Micro-batches to batches. A context manager: leaving it ends its workers.

    `copies`: see ClipReader; `targets` and `weights`: columns over the whole index; clips are cut to `max_samples`; `workers`:
    processes, 0 for a thread; `window_bytes`: micro-batches of so many bytes are read together, 0: one at a time; `keep_bytes`
    of decoded clips stay in memory, if a thread decodes: each process would have to keep them all.
    """

    def __init__(
        self,
        index: ShardIndex,
        targets: np.ndarray,
        weights: np.ndarray,
        *,
        copies: Sequence[Place] = (),
        max_samples: int | None = None,
        augment: Sequence[Transform] = (),
        workers: int = 0,
        window_bytes: int = 0,
        keep_bytes: int = 0,
    ) -> None:
        self._index, self._targets, self._weights, self._window_bytes = index, targets, weights, window_bytes
        room = 0 if workers else keep_bytes
        self._reader: ClipReader = KeepingReader(index.roots, copies, coalesce=window_bytes > 0, keep_bytes=room)
        self._ahead = Ahead(SoundMaker(self._reader, max_samples, Augment(augment) if augment else None), workers)

    def ahead(self, micros: Iterable[MicroBatch], *, training: bool = False) -> Iterator[Batch]:
        """The batches of `micros`, in order, some of them made ahead.

        A damaged clip has weight zero in training; else it raises CorruptClipError. Raises UserError for a shard that cannot be
        read, RuntimeError for a worker that was killed.
        """
        waiting: deque[MicroBatch] = deque()

        def windows() -> Iterator[list[Wanted]]:
            for window in self._windows(micros):
                waiting.extend(window)
                yield self._wanted(window)

        for sounds in chain.from_iterable(self._ahead(windows())):
            for error in () if training else sounds.damaged.values():
                raise error
            yield self._batch(waiting.popleft(), sounds)

    def delivers(self, micros: Sequence[MicroBatch], limit_s: float) -> float | None:
        """Seconds of audio a second that come when nobody waits for them, measured for about `limit_s`; what came is dropped.

        The first window of each worker is not counted: it comes after the worker's own start. What is read is kept, if there is
        room, for training too. None if `micros` is empty.
        """
        if not micros:
            return None
        batches = self._ahead(self._wanted(window) for window in self._windows(cycle(micros)))
        for _ in range(self._ahead.workers or 1):
            next(batches)
        began, samples = awake_s(), 0
        for window in batches:
            samples += sum(len(sounds.samples) for sounds in window)
            if (took := awake_s() - began) > limit_s:
                return samples / RATE / took
        return None

    def close(self) -> None:
        self._ahead.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _windows(self, micros: Iterable[MicroBatch]) -> Iterator[list[MicroBatch]]:
        window: list[MicroBatch] = []
        size = 0
        for micro in micros:
            window.append(micro)
            size += int(self._index.size[micro.clips.positions].sum())
            if size >= self._window_bytes:
                yield window
                window, size = [], 0
        if window:
            yield window

    def _wanted(self, window: Sequence[MicroBatch]) -> list[Wanted]:
        return [Wanted(extents(self._index, micro.clips.positions), micro.clips.seeds) for micro in window]

    def _batch(self, micro: MicroBatch, sounds: Sounds) -> Batch:
        damaged = np.zeros(len(micro.clips), dtype=np.int64)
        for i, error in sounds.damaged.items():
            damaged[i] = error.cause
        return batch_of(micro, sounds.samples, sounds.offsets, damaged, self._targets, self._weights)


def batch_of(
    micro: MicroBatch, samples: np.ndarray, offsets: np.ndarray, damaged: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> Batch:
    """`targets` and `weights`: columns over the whole index; the rest as a `Batch` has it."""
    positions = micro.clips.positions
    real = (damaged == 0) & (not micro.filler)
    return Batch(
        samples=torch.from_numpy(samples),
        offsets=torch.from_numpy(offsets),
        targets={"emotion": torch.from_numpy(targets[positions])},
        weights=torch.from_numpy((weights[positions] * real).astype(np.float32)),
        positions=positions,
        rows=micro.rows,
        damaged=torch.from_numpy(damaged),
        number=micro.number,
    )
