"""Cut recordings into what is predicted at once: whole clips, or windows that slide over long ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ser_hpc.core.errors import UserError
from ser_hpc.data.prefetch import Crop
from ser_hpc.inference.recordings import Recording
from ser_hpc.shards import RATE
from ser_hpc.shards.audio import BadClipError

MOST_WHOLE_S = 300.0
"""A longer recording is not predicted as one clip: it is no utterance, and attention takes time by its square."""
SHORTEST_S = 0.1


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of a recording. `samples`: int16 (n,) at 16 kHz; `cut`: the recording is longer than the model hears."""

    audio: str
    start_s: float
    samples: np.ndarray
    cut: bool = False

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.samples) / RATE


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of `size_s` seconds, one beginning every `hop_s`; the last ends where the recording does."""

    size_s: float
    hop_s: float

    def check(self, most_s: float | None) -> None:
        """Raise UserError for windows that cannot be, or that are longer than a model hears (`most_s`)."""
        if not SHORTEST_S <= self.size_s <= MOST_WHOLE_S:
            raise UserError(f"a window of {self.size_s:g} s: give {SHORTEST_S:g} to {MOST_WHOLE_S:g} s, such as 4")
        if most_s is not None and self.size_s > most_s:
            raise UserError(f"a window of {self.size_s:g} s is longer than the {most_s:g} s that this model hears at once")
        if not SHORTEST_S <= self.hop_s <= self.size_s:
            raise UserError(
                f"a window every {self.hop_s:g} s: give {SHORTEST_S:g} s at least, and no more than the window's "
                f"{self.size_s:g} s, or what lies between windows is never heard"
            )

    def clips(self, recording: Recording) -> Iterator[Clip]:
        """Yield a recording's windows, see `sliding`."""
        return sliding(recording, self)


class Cutter(Protocol):
    """A way of cutting long recordings: `check` raises UserError for what a model cannot hear at once, `clips` cuts one."""

    def check(self, most_s: float | None) -> None: ...

    def clips(self, recording: Recording) -> Iterator[Clip]: ...


def whole(recording: Recording, crop: Crop) -> Iterator[Clip]:
    """Yield a recording as one clip, cut to what the model hears of it. Raises BadClipError."""
    held, count = [], 0
    for block in recording.blocks():
        held.append(block)
        count += len(block)
        if crop.samples is not None and count > crop.samples and not crop.center:
            break  # the rest is not heard
        if count > MOST_WHOLE_S * RATE:
            raise BadClipError(
                f"is longer than the {MOST_WHOLE_S:g} s that are predicted as one clip: predict it in windows, as with "
                "--window 4 --hop 1, or --split-at-pauses"
            )
    if not count:
        raise BadClipError("holds no sound")
    heard = crop(np.concatenate(held))
    yield Clip(recording.name, recording.start_s + crop.first(count) / RATE, heard, cut=len(heard) < count)


def sliding(recording: Recording, windows: Windows) -> Iterator[Clip]:
    """Yield a recording's windows; all of it, where it is shorter than one. Holds little more than a window. Raises
    BadClipError."""
    size, hop = round(windows.size_s * RATE), round(windows.hop_s * RATE)
    kept, begin, done = np.zeros(0, np.int16), 0, 0  # `kept` begins at sample `begin`; windows up to `done` are out
    for block in recording.blocks():
        kept = np.concatenate([kept, block])
        start = done
        while start + size <= begin + len(kept):
            yield Clip(recording.name, recording.start_s + start / RATE, kept[start - begin : start - begin + size].copy())
            start += hop
        done = start
        # What a window to come may need: from its start on, and, for the last one, as far as it may reach back.
        drop = max(0, min(done - begin, len(kept) - size))
        kept, begin = kept[drop:], begin + drop
    end = begin + len(kept)
    if not end:
        raise BadClipError("holds no sound")
    if done == 0 or done - hop + size < end:
        last = max(begin, end - size)
        yield Clip(recording.name, recording.start_s + last / RATE, kept[last - begin :].copy())


def cut(recordings: Iterable[Recording], cutter: Cutter | None, crop: Crop) -> Iterator[Clip | tuple[str, str]]:
    """Yield the clips of recordings, and (name, reason) where one cannot be read, or not to its end; the others go on."""
    for recording in recordings:
        try:
            yield from cutter.clips(recording) if cutter else whole(recording, crop)
        except BadClipError as error:
            yield recording.name, str(error)
        except OSError as error:  # it vanished, or its disk did
            yield recording.name, f"cannot be read: {error.strerror or error}"
