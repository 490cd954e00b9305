"""Cut recordings at pauses: stretches of speech, found by their level, with a shortest and a longest length.

A frame's level in dB is compared with two thresholds between the noise around it and the recording's loudest frames (Rabiner
and Sambur 1975, "An Algorithm for Determining the Endpoints of Isolated Utterances"): speech begins above the upper one and
ends below the lower one, so that a level that trembles about a threshold cuts nothing. That tells loud from quiet and knows
nothing of speech: music and a slamming door are loud too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.ndimage import minimum_filter1d, uniform_filter1d

from ser_hpc.core.errors import UserError
from ser_hpc.inference.recordings import Recording
from ser_hpc.inference.windows import MOST_WHOLE_S, SHORTEST_S, Clip
from ser_hpc.shards import RATE
from ser_hpc.shards.audio import BadClipError

_FRAME = RATE // 50  # samples: 20 ms
_SILENCE_DB = 20.0  # of int16 samples: -70 dB of full scale; nothing below is told apart
_SMOOTH, _AROUND = 5, 1500  # frames: 0.1 s; 30 s, within which the quietest place is the noise
_PAUSE = 15  # frames: 0.3 s, longer than the closure of a stop
_EDGE = 5  # frames of a pause that stay with the speech beside it
_LEAST_RANGE_DB = 20.0  # what is less far below the loudest is no pause
_BEGIN, _END = 0.4, 0.25  # of the range from noise to loudest: where speech begins, and where it ends


@dataclass(frozen=True, slots=True)
class Pauses:
    """Stretches between pauses. `least_s`: shorter ones are joined to a neighbour within that distance, or take silence from
    around them; `most_s`: longer ones are cut where they are quietest."""

    least_s: float = 1.0
    most_s: float = 10.0

    def check(self, most_s: float | None) -> None:
        """Raise UserError for lengths that cannot be, or that are longer than a model hears (`most_s`)."""
        if not SHORTEST_S <= self.least_s <= self.most_s / 2:
            raise UserError(f"a shortest length of {self.least_s:g} s: give {SHORTEST_S:g} s to half of the longest")
        if self.most_s > MOST_WHOLE_S:
            raise UserError(f"a longest length of {self.most_s:g} s: give {MOST_WHOLE_S:g} s at most")
        if most_s is not None and self.most_s > most_s:
            raise UserError(
                f"a longest length of {self.most_s:g} s is more than the {most_s:g} s that this model hears at once"
            )

    def clips(self, recording: Recording) -> Iterator[Clip]:
        """Yield a recording's stretches. It is read twice: once for its levels, 0.7 MB an hour, then stretch by stretch.
        Raises BadClipError; where it is damaged, after what lies before that."""
        stretches = iter(self.stretches(_levels(recording)))
        upcoming = next(stretches, None)
        kept, begin = np.zeros(0, np.int16), 0  # `kept` begins at sample `begin`
        for block in recording.blocks():
            kept = np.concatenate([kept, block])
            while upcoming is not None and upcoming[1] * _FRAME <= begin + len(kept):
                first, last = (frame * _FRAME - begin for frame in upcoming)
                yield Clip(recording.name, recording.start_s + (begin + first) / RATE, kept[first:last].copy())
                upcoming = next(stretches, None)
            wanted = begin + len(kept) if upcoming is None else upcoming[0] * _FRAME
            drop = min(max(0, wanted - begin), len(kept))
            kept, begin = kept[drop:], begin + drop
        if upcoming is not None:  # the last one ends with a frame that is not whole
            first = upcoming[0] * _FRAME - begin
            if first >= len(kept):
                raise BadClipError("changed while it was read")
            yield Clip(recording.name, recording.start_s + (begin + first) / RATE, kept[first:].copy())

    def stretches(self, levels: np.ndarray) -> list[tuple[int, int]]:
        """Find the stretches in levels (frames,) in dB: first frame and the one behind the last, in order, none overlapping."""
        least, most = (round(seconds * RATE / _FRAME) for seconds in (self.least_s, self.most_s))
        joined: list[tuple[int, int]] = []
        for first, last in _speech(levels):
            if joined:
                before, end = joined[-1]
                short = min(end - before, last - first) < least
                if short and first - end <= least and last - before <= most:
                    joined[-1] = (before, last)
                    continue
            joined.append((first, last))
        found = [piece for first, last in joined for piece in _cut(levels, first, last, least, most)]
        return _widened(found, least, len(levels))


def _levels(recording: Recording) -> np.ndarray:
    """Measure each frame's level, in dB; of a damaged recording, as far as it can be read."""
    parts, rest = [], np.zeros(0, np.int16)
    try:
        for block in recording.blocks():
            row = np.concatenate([rest, block])
            whole = len(row) // _FRAME * _FRAME
            parts.append(_level(row[:whole].reshape(-1, _FRAME)))
            rest = row[whole:]
        if len(rest):
            parts.append(_level(rest[None]))
    except BadClipError:
        if not parts:
            raise
    if not sum(map(len, parts)):
        raise BadClipError("holds no sound")
    return np.concatenate(parts)


def _level(frames: np.ndarray) -> np.ndarray:
    power = np.square(frames, dtype=np.float32).mean(axis=1)
    level: np.ndarray = np.maximum(10 * np.log10(power + 1), _SILENCE_DB).astype(np.float32)
    return level


def _speech(levels: np.ndarray) -> list[tuple[int, int]]:
    """Find what lies between pauses, with a little of them on each side; all of it where nothing is loud."""
    smooth = uniform_filter1d(levels, _SMOOTH, mode="nearest")
    loudest = np.percentile(smooth, 99)
    noise = np.minimum(minimum_filter1d(smooth, _AROUND, mode="nearest"), loudest - _LEAST_RANGE_DB)
    share = (smooth - noise) / (loudest - noise)
    # Between the thresholds a frame is as the last one that was outside them.
    known = np.where(share >= _BEGIN, 1, np.where(share < _END, 0, -1)).astype(np.int8)
    latest = np.maximum.accumulate(np.where(known >= 0, np.arange(len(known)), 0))
    loud = known[latest] == 1
    edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(np.int8)))
    runs: list[list[int]] = []
    for first, last in edges.reshape(-1, 2).tolist():
        if runs and first - runs[-1][1] < _PAUSE:
            runs[-1][1] = last
        else:
            runs.append([first, last])
    return [(max(0, first - _EDGE), min(len(levels), last + _EDGE)) for first, last in runs] or [(0, len(levels))]


def _cut(levels: np.ndarray, first: int, last: int, least: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut what is longer than `most` frames where it is quietest, in the latter half of that, and leave no piece below
    `least`."""
    while last - first > most:
        begin, end = first + most // 2, min(first + most, last - least)
        at = begin + int(levels[begin : max(end, begin + 1)].argmin())
        yield first, at
        first = at
    yield first, last


def _widened(found: list[tuple[int, int]], least: int, frames: int) -> list[tuple[int, int]]:
    """Give stretches below `least` frames of the silence around them, as far as there is some."""
    wide: list[tuple[int, int]] = []
    for (first, last), (following, _) in pairwise([*found, (frames, frames)]):
        before = wide[-1][1] if wide else 0
        first = max(before, first - max(0, least - (last - first)) // 2)
        last = min(following, max(last, first + least))
        wide.append((max(before, min(first, last - least)), last))
    return wide
