"""Make batches of clips, from their positions to tensors, ahead of the model: what training and evaluation iterate over.

A `Batch` is never padded: the clips' samples stand one after another. Collating is concatenating; whether an encoder pads,
sorts or packs is its own affair, on its own device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ser_hpc.config.mixup import MixupSettings
from ser_hpc.config.transforms import Transform
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.data.augmentation import Augmentation
from ser_hpc.data.cache import CachingClipReader
from ser_hpc.data.mixup import Mixer
from ser_hpc.data.prefetch import ClipLoader, Crop, Prefetcher, Window
from ser_hpc.data.read_ahead import ReadAhead
from ser_hpc.data.sampler import MicroBatch
from ser_hpc.shards import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ClipReader, CorruptClipError
from ser_hpc.shards.storage import Location
from ser_hpc.tasks.task import ClipTargets


@dataclass(frozen=True, slots=True)
class PartnerTargets:
    """What the clips that a micro-batch's clips are mixed with teach: as a `Batch` has it of these."""

    targets: dict[str, Tensor]
    weights: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch: `samples` (total,) int16 at 16 kHz, or float32, 1 being int16's full scale, once augmented; clip i is
    samples[offsets[i]:offsets[i+1]]; `offsets` (B + 1,) int64.

    `targets` by task, (B, ...); `weights` by task, (B,) float32, 0 for a filler, a damaged clip or one without a target;
    `positions` (B,) rows of the index; `rows` (B,) places in the step or part, none of a filler; `damaged` (B,) int64:
    CorruptionCause, or 0; `number` is the micro-batch's number in its step, which seeds its dropout. Of pooled states `samples`
    is (B, width), one row a clip. `partners`: of clips that are mixed; a clip's two weights are each times its share.
    """

    samples: Tensor
    offsets: Tensor
    targets: dict[str, Tensor]
    weights: dict[str, Tensor]
    positions: np.ndarray
    rows: np.ndarray
    damaged: Tensor
    number: int
    partners: PartnerTargets | None = None

    def __post_init__(self) -> None:
        assert bool((self.offsets.diff() > 0).all()), "every clip has samples"

    @property
    def seconds(self) -> float:
        """Count seconds of audio, padding left out."""
        return len(self.samples) / RATE


class Source(AbstractContextManager[Any], Protocol):
    """A source of the loop's batches; leaving it as a context manager frees what it holds."""

    def prefetch(self, micros: Iterable[MicroBatch], *, training: bool = False) -> Iterator[Batch]: ...

    def measure_throughput(self, micros: Sequence[MicroBatch], limit_s: float) -> float | None: ...


class BatchSource(AbstractContextManager[Any]):
    """A source of batches that decodes clips. A context manager: leaving it ends its workers.

    `targets`: of the whole index; `copies`: see ClipReader; `crop`: what is kept of each clip; `mixup`: of clips that have
    partners; `workers`:
    processes, 0 for a thread; `window_bytes`: micro-batches of so many bytes are read together, 0: one at a time; or
    `ahead_bytes`: the windows of a ShardOrder are, and about so many bytes wait for their micro-batch; `keep_bytes` of
    decoded clips stay in memory, if a thread decodes: each process would have to keep them all.
    """

    def __init__(
        self,
        index: ShardIndex,
        targets: ClipTargets,
        *,
        copies: Sequence[Location] = (),
        crop: Crop = Crop(),  # noqa: B008  # frozen
        augment: Sequence[Transform] = (),
        mixup: MixupSettings | None = None,
        workers: int = 0,
        window_bytes: int = 0,
        ahead_bytes: int = 0,
        keep_bytes: int = 0,
    ) -> None:
        self._index, self._targets, self._window_bytes = index, targets, window_bytes
        room = 0 if workers else keep_bytes
        coalesce = window_bytes + ahead_bytes > 0
        self._reader: ClipReader = CachingClipReader(index.roots, copies, coalesce=coalesce, keep_bytes=room)
        self._ahead = ReadAhead(self._reader, index, ahead_bytes) if ahead_bytes else None
        mix = Mixer(mixup) if mixup else None
        loader = ClipLoader(self._reader, crop, Augmentation(augment) if augment else None, mix)
        self._prefetch = Prefetcher(index, loader, workers)

    def prefetch(self, micros: Iterable[MicroBatch], *, training: bool = False) -> Iterator[Batch]:
        """Make the batches of `micros`, in order, some of them ahead.

        A damaged clip has weight zero in training; else it raises CorruptClipError. Raises UserError for a shard that cannot be
        read, RuntimeError for a worker that was killed.
        """
        for window in self._prefetch(self._windows(micros)):
            for micro, clips in window:
                for error in () if training else clips.damaged.values():
                    raise error
                damaged, of_partners = (_causes(errors, len(micro.clips)) for errors in (clips.damaged, clips.damaged_partners))
                yield collate(micro, clips.samples, clips.offsets, damaged, self._targets, of_partners)

    def measure_throughput(self, micros: Sequence[MicroBatch], limit_s: float) -> float | None:
        """Measure seconds of audio a second that come when nobody waits for them, for about `limit_s`; what came is dropped.

        The first window of each worker is not counted: it comes after the worker's own start. What is read is kept, if there is
        room, for training too. Read ahead, `micros` come once, from the first byte on: again, they would be in memory. None if
        `micros` is empty.
        """
        if not micros:
            return None
        windows = self._prefetch(self._windows(micros if self._ahead else cycle(micros)))
        for _ in range(0 if self._ahead else self._prefetch.workers or 1):
            next(windows)
        began, samples = awake_s(), 0
        for window in windows:
            samples += sum(len(clips.samples) for _, clips in window)
            if awake_s() - began > limit_s:
                break
        return samples / RATE / (awake_s() - began)

    def __exit__(self, *_: object) -> None:
        self._prefetch.close()
        if self._ahead:
            self._ahead.close()
        self._reader.close()

    def _windows(self, micros: Iterable[MicroBatch]) -> Iterator[Window]:
        if self._ahead:
            yield from (([micro], payloads) for micro, payloads in self._ahead(micros))
            return
        window: list[MicroBatch] = []
        size = 0
        for micro in micros:
            window.append(micro)
            size += int(self._index.size[micro.clips.loaded.positions].sum())
            if size >= self._window_bytes:
                yield window, None
                window, size = [], 0
        if window:
            yield window, None


def group_by_step(source: Source, steps: Iterable[list[MicroBatch]]) -> Iterator[list[Batch]]:
    """Make the batches of each step, decoded ahead across the border between steps, which are cut up only as they come near."""
    pending: deque[int] = deque()  # micro-batches of each step that was cut up

    def micros() -> Iterator[MicroBatch]:
        for step in steps:
            pending.append(len(step))
            yield from step

    batches = source.prefetch(micros(), training=True)
    for first in batches:
        yield [first, *islice(batches, pending.popleft() - 1)]


def _causes(errors: Mapping[int, CorruptClipError], count: int) -> np.ndarray:
    """Return the CorruptionCause of each of `count` clips, or 0, int64 (count,)."""
    causes = np.zeros(count, dtype=np.int64)
    for i, error in errors.items():
        causes[i] = error.cause
    return causes


def collate(
    micro: MicroBatch,
    samples: np.ndarray,
    offsets: np.ndarray,
    damaged: np.ndarray,
    targets: ClipTargets,
    damaged_partners: np.ndarray | int = 0,
) -> Batch:
    """Join a micro-batch's clips. `targets`: of the whole index; `damaged_partners`: of the clips that they are mixed with,
    which then teach nothing; the rest as a `Batch` has it."""
    clips = micro.clips
    real = (damaged == 0) & (len(micro.rows) > 0)  # of a filler none
    partners, shares = None, real
    if clips.partners is not None and clips.shares is not None:
        theirs = (1 - clips.shares) * (real & (damaged_partners == 0))
        partners, shares = PartnerTargets(*_taught(targets, clips.partners.positions, theirs)), clips.shares * real
    values, weights = _taught(targets, clips.positions, shares)
    return Batch(
        samples=torch.from_numpy(samples),
        offsets=torch.from_numpy(offsets),
        targets=values,
        weights=weights,
        positions=clips.positions,
        rows=micro.rows,
        damaged=torch.from_numpy(damaged),
        number=micro.number,
        partners=partners,
    )


def _taught(targets: ClipTargets, positions: np.ndarray, shares: np.ndarray) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take the targets and weights of clips, by task, the weights times `shares` (B,)."""
    values = {task: torch.from_numpy(of_task[positions]) for task, of_task in targets.values.items()}
    weights = {
        task: torch.from_numpy((of_task[positions] * shares).astype(np.float32)) for task, of_task in targets.weights.items()
    }
    return values, weights
