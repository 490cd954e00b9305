"""Load clips ahead of the model, for `batches.BatchSource`: read, decoded and augmented by one thread, or by processes.

    window          micro-batches that are read together
    -> requests     where their clips lie, looked up in the index
    -> decoded      int16 samples at 16 kHz, straight out of the tars
    -> augmented    what a micro-batch is made of

Not torch's DataLoader: a thread and processes are one code, workers need no torch (each is up in a moment and holds tens of
MB), what a worker raises arrives as it was raised, and a dead one is told at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ser_hpc.core.cores import rank_share
from ser_hpc.core.process_pool import ProcessPool, WorkerKilledError
from ser_hpc.data.augmentation import Augmentation
from ser_hpc.data.sampler import ClipSelection, MicroBatch
from ser_hpc.shards import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ClipReader, CorruptClipError, Extent, Payload, clip_extents

SILENCE = RATE // 10  # samples in the place of a damaged clip
_MAX_WORKERS = 8  # 6 to 8 cores augment as fast as a GPU of today trains on them
_THREAD_DEPTH, _PROCESS_DEPTH = 4, 2  # windows ahead, of the thread and of each process

Clips = list[np.ndarray | CorruptClipError]
Window = tuple[Sequence[MicroBatch], Sequence[Payload] | None]  # micro-batches, and the bytes of their clips, if read already
_loader: ClipLoader | None = None  # in a worker process


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """The clips of a micro-batch, and the `seeds` (uint64) of their augmentation; none: they are taken as they are. `shares`:
    the second half of the clips are the partners that those of the first are mixed with, these having such shares; none: no
    clip is mixed."""

    clips: list[Extent]
    seeds: np.ndarray | None
    shares: np.ndarray | None = None

    @classmethod
    def of_clips(cls, index: ShardIndex, clips: ClipSelection) -> ClipRequest:
        """Look up where the clips lie, and those that they are mixed with."""
        loaded = clips.loaded
        return cls(clip_extents(index, loaded.positions), loaded.seeds, clips.shares)


@dataclass(frozen=True, slots=True)
class DecodedClips:
    """Samples (total,) int16 or float32 at 16 kHz; clip i is samples[offsets[i]:offsets[i+1]]; `offsets` (B + 1,) int64.

    `damaged`: what is wrong with clip i, for those that are; a short silence stands in their place. `damaged_partners`: so of
    the clip that clip i is mixed with.
    """

    samples: np.ndarray
    offsets: np.ndarray
    damaged: dict[int, CorruptClipError]
    damaged_partners: dict[int, CorruptClipError]


@dataclass(frozen=True, slots=True)
class Crop:
    """What is kept of a clip: `samples` at most (None: all of it), from its start, or around its `center`."""

    samples: int | None = None
    center: bool = False

    @classmethod
    def of_seconds(cls, max_seconds: float | None, crop: str) -> Crop:
        """Make it of the settings `data.max_seconds` and `data.crop`."""
        return cls(None if max_seconds is None else round(max_seconds * RATE), crop == "center")

    def first(self, count: int) -> int:
        """Return the first sample that is kept of a clip of `count`."""
        return max(0, count - self.samples) // 2 if self.center and self.samples is not None else 0

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Cut (n,) samples."""
        start = self.first(len(clip))
        return clip if self.samples is None else clip[start : start + self.samples]


@dataclass(frozen=True, slots=True)
class ClipLoader:
    """A reader of requests, sent to worker processes. Clips are cropped before and after augmentation, and then mixed, if they
    have partners."""

    reader: ClipReader
    crop: Crop = Crop()
    augment: Augmentation | None = None
    mix: Callable[[np.ndarray, np.ndarray, float], np.ndarray] | None = None

    def read(self, window: Sequence[ClipRequest], payloads: Sequence[Payload] | None) -> Clips:
        """Read and decode the clips of all micro-batches of a window, together. `payloads`: see ClipReader.read."""
        return self.reader.read([clip for request in window for clip in request.clips], payloads)

    def finish(self, window: Sequence[ClipRequest], found: Clips) -> list[DecodedClips]:
        """Augment what `read` found, mix it, and join it micro-batch by micro-batch."""
        made, start = [], 0
        for request in window:
            given = found[start : start + len(request.clips)]
            start += len(given)
            clips = [self._clip(clip, None if request.seeds is None else int(request.seeds[i])) for i, clip in enumerate(given)]
            damaged = {i: clip for i, clip in enumerate(given) if isinstance(clip, CorruptClipError)}
            of_partners: dict[int, CorruptClipError] = {}
            if request.shares is not None and self.mix is not None:
                count = len(request.shares)
                clips = list(map(self.mix, clips[:count], clips[count:], request.shares.tolist()))
                of_partners = {i - count: error for i, error in damaged.items() if i >= count}
                damaged = {i: error for i, error in damaged.items() if i < count}
            made.append(DecodedClips(np.concatenate(clips), np.cumsum([0, *map(len, clips)]), damaged, of_partners))
        return made

    def _clip(self, found: np.ndarray | CorruptClipError, seed: int | None) -> np.ndarray:
        augment = None if seed is None else self.augment
        if isinstance(found, CorruptClipError):
            return np.zeros(SILENCE, dtype=np.float32 if augment else np.int16)
        clip = self.crop(found)
        return clip if augment is None or seed is None else self.crop(augment(clip, seed))


class Prefetcher:
    """Runs `loader` in `workers` processes; with 0, a thread looks up and reads, and the caller's thread augments.

    (Augmentation seeds global random states, which no other thread of a process should see.)
    """

    def __init__(self, index: ShardIndex, loader: ClipLoader, workers: int) -> None:
        self._index, self._loader, self.workers = index, loader, workers
        self._depth = _PROCESS_DEPTH * workers or _THREAD_DEPTH
        self._processes = ProcessPool(workers, _begin, loader) if workers else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader")

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the workers that have begun."""
        return self._processes.pids if self._processes else []

    def __call__(self, windows: Iterable[Window]) -> Iterator[list[tuple[MicroBatch, DecodedClips]]]:
        """Load windows in order, some of them ahead. Raises what the loader raises; RuntimeError if a worker was killed."""
        waiting: deque[tuple[Sequence[MicroBatch], Future[Any]]] = deque()
        try:
            for window, payloads in windows:
                if self._processes:
                    waiting.append((window, self._processes.submit(_load, self._requests(window), payloads)))
                else:
                    waiting.append((window, self._thread.submit(self._read, window, payloads)))
                if len(waiting) > self._depth:
                    yield self._loaded(*waiting.popleft())
            while waiting:
                yield self._loaded(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def close(self) -> None:
        if self._processes:
            self._processes.close()
        self._thread.shutdown(cancel_futures=True)

    def _requests(self, window: Sequence[MicroBatch]) -> list[ClipRequest]:
        return [ClipRequest.of_clips(self._index, micro.clips) for micro in window]

    def _read(self, window: Sequence[MicroBatch], payloads: Sequence[Payload] | None) -> tuple[list[ClipRequest], Clips]:
        requests = self._requests(window)
        return requests, self._loader.read(requests, payloads)

    def _loaded(self, window: Sequence[MicroBatch], future: Future[Any]) -> list[tuple[MicroBatch, DecodedClips]]:
        try:
            result = future.result()
        except WorkerKilledError as error:
            raise RuntimeError(f"a data worker was killed (out of memory? fewer data.workers need less): {error}") from None
        return list(zip(window, result if self._processes else self._loader.finish(*result), strict=True))


def default_workers(augments: bool, ranks_here: int) -> int:
    """Choose how many workers: decoding alone outruns training in one thread; with augmentation, one for each core to spare."""
    if not augments:
        return 0
    return max(1, min(_MAX_WORKERS, rank_share(os.environ, ranks_here).cores - 1))


def _begin(loader: ClipLoader) -> None:
    global _loader
    _loader = loader


def _load(window: Sequence[ClipRequest], payloads: Sequence[Payload] | None) -> list[DecodedClips]:
    assert _loader is not None
    return _loader.finish(window, _loader.read(window, payloads))
