"""The samples of micro-batches: read, decoded and augmented, one clip after another. What data workers do; without torch,
which would cost each of them seconds and hundreds of MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ser_hpc.data.augment import Augment
from ser_hpc.shards.audio import RATE
from ser_hpc.shards.read import ClipReader, CorruptClipError, Extent

SILENCE = RATE // 10  # samples in the place of a damaged clip


@dataclass(frozen=True, slots=True)
class Wanted:
    """The clips of a micro-batch; `seeds`, uint64, of their augmentation; none: as they are."""

    clips: list[Extent]
    seeds: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Sounds:
    """`samples` (total,) int16 or float32 at 16 kHz; clip i is samples[offsets[i]:offsets[i+1]]; `offsets` (B + 1,) int64.

    `damaged`: what is wrong with clip i, for those that are; a short silence stands in their place.
    """

    samples: np.ndarray
    offsets: np.ndarray
    damaged: dict[int, CorruptClipError]


@dataclass(frozen=True, slots=True)
class SoundMaker:
    """Clips are cut to `max_samples`, before and after they are augmented."""

    reader: ClipReader
    max_samples: int | None = None
    augment: Augment | None = None

    def make(self, window: Sequence[Wanted]) -> list[Sounds]:
        return self.finish(window, self.read(window))

    def read(self, window: Sequence[Wanted]) -> list[np.ndarray | CorruptClipError]:
        """The clips of all micro-batches of a window, read together."""
        return self.reader.read([clip for wanted in window for clip in wanted.clips])

    def finish(self, window: Sequence[Wanted], found: Sequence[np.ndarray | CorruptClipError]) -> list[Sounds]:
        clips = iter(found)
        return [self._sounds([next(clips) for _ in wanted.clips], wanted.seeds) for wanted in window]

    def _sounds(self, found: Sequence[np.ndarray | CorruptClipError], seeds: np.ndarray | None) -> Sounds:
        damaged = {i: clip for i, clip in enumerate(found) if isinstance(clip, CorruptClipError)}
        clips = [self._clip(clip, None if seeds is None else int(seeds[i])) for i, clip in enumerate(found)]
        return Sounds(np.concatenate(clips), np.cumsum([0] + [len(clip) for clip in clips]), damaged)

    def _clip(self, found: np.ndarray | CorruptClipError, seed: int | None) -> np.ndarray:
        augmented = self.augment is not None and seed is not None
        if isinstance(found, CorruptClipError):
            return np.zeros(SILENCE, dtype=np.float32 if augmented else np.int16)
        clip = found[: self.max_samples]
        if self.augment is not None and seed is not None:
            clip = self.augment(clip, seed)[: self.max_samples]
        return clip
