"""Find all pairs of clips that share sound, altered or not, by their acoustic fingerprints.

    keys          three words, 64 ms apart, are a key of 48 bits; what is one recording has many of them in common
    candidates    two clips with a key in common, and how far one lies behind the other; a key of more than COMMON clips
                  (a hum, a beep, a hundred copies) leads from each to the first and the next of them only
    error         the share of bits that differ where they overlap: 0.5 for what has nothing in common
    pairs         whose error is below MOST_ERRORS, over a quarter of the shorter clip at least; of many copies of a clip
                  not all N * N: those that are among the PER_CLIP with the fewest errors of either, and what links all

Every key is looked at: nothing is sampled. They are sorted a range at a time, so that memory is bounded, whatever the number of
clips. Error rates, on real speech: docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from ser_hpc.shards.fingerprint import BITS, HOP, SHORTEST, SILENCE, words_to_seconds

COMMON = 64
PER_CLIP = 16
MOST_ERRORS = 0.15  # share of bits
MOST_ERRORS_SHORT = 0.10  # where fewer than LONG words are compared
LONG = 40  # words
LEAST_WORDS = 17  # what a key spans
LEAST_SHARE = 1 / 4  # of the shorter clip
SHORTEST_COMPARED = SHORTEST + (LEAST_WORDS - 1) * HOP  # samples
_KEY_WORDS, _KEY_STEP = 3, 8
_SPAN = (_KEY_WORDS - 1) * _KEY_STEP
_AT_ONCE = 1 << 22  # words
_KEYS_AT_ONCE = 1 << 25
_PAIRS_AT_ONCE = 1 << 20
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: spreads the keys over their ranges


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """The fingerprints of many clips. `words`: uint16, clip i from `starts[i]` on, `lengths[i]` words, _SPAN of silence
    after."""

    words: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def join(cls, words: Sequence[np.ndarray], lengths: Sequence[np.ndarray]) -> Fingerprints:
        """Join those of several files: each one's `words`, and how many of them each of its clips has."""
        per_clip = np.concatenate([*lengths, np.zeros(0, np.int64)]).astype(np.int64)
        ends = np.cumsum(per_clip + _SPAN)
        starts = ends - per_clip - _SPAN
        joined = np.full(int(ends[-1]) if len(ends) else 0, SILENCE, dtype=np.uint16)
        clip = 0
        for some, of_clips in zip(words, lengths, strict=True):
            here = slice(clip, clip + len(of_clips))
            shift = np.repeat(starts[here] - (np.cumsum(of_clips) - of_clips), of_clips)
            joined[np.arange(len(some)) + shift] = some
            clip = here.stop
        return cls(joined, starts, per_clip)

    @property
    def audible(self) -> np.ndarray:
        """Number of words of each clip that are not silence, int64 (num_clips,)."""
        if not len(self.starts):
            return np.zeros(0, dtype=np.int64)
        counts: np.ndarray = np.add.reduceat(self.words != SILENCE, self.starts, dtype=np.int64)
        return counts


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of clips that share sound, all arrays (num_pairs,), ascending by `first` and `second`, which are numbers of clips.

    Word t of the first is word t - `offset` of the second; `words` of them were compared, and the share `error` of their bits
    differs.
    """

    first: np.ndarray
    second: np.ndarray
    offset: np.ndarray
    words: np.ndarray
    error: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[Pairs]) -> Pairs:
        """Join the pairs of several ranges of keys: of those of the same clips, the one with the fewest errors."""
        none = np.zeros(0, np.int64)
        nothing = cls(none, none, none, none, np.zeros(0))
        columns = [np.concatenate([getattr(part, field.name) for part in (nothing, *parts)]) for field in fields(cls)]
        first, second, _, _, error = columns
        order = np.lexsort((error, second, first))
        new = np.ones(len(order), dtype=bool)
        new[1:] = (np.diff(first[order]) != 0) | (np.diff(second[order]) != 0)
        return cls(*(column[order[new]] for column in columns))

    def __len__(self) -> int:
        return len(self.first)

    def thinned(self) -> Pairs:
        """Leave out pairs of clips that have many: neither is among the PER_CLIP nearest of the other (with the fewest errors),
        and the two stay linked by pairs that are kept, so that none of a group passes for a clip of its own."""
        if not len(self):
            return self
        one, other = np.concatenate([self.first, self.second]), np.concatenate([self.second, self.first])
        order = np.lexsort((other, np.tile(self.error, 2), one))
        ranks = np.arange(len(order)) - np.searchsorted(one[order], one[order])
        near = np.zeros(len(self), dtype=bool)
        near[order[ranks < PER_CLIP] % len(self)] = True
        return self if near.all() else self.take(near | self._links())

    def _links(self) -> np.ndarray:
        """Tell which pairs make a spanning forest of the clips, that with the fewest errors, bool (num_pairs,)."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import minimum_spanning_tree

        weight = np.empty(len(self))
        weight[np.argsort(self.error, kind="stable")] = np.arange(1, len(self) + 1)  # no two are equal, and none is zero
        size = int(self.second.max()) + 1
        tree = minimum_spanning_tree(coo_array((weight, (self.first, self.second)), shape=(size, size)).tocsr())
        return np.isin(weight, tree.data)

    def take(self, rows: np.ndarray) -> Pairs:
        """Return some of them: int array or mask."""
        return Pairs(*(getattr(self, field.name)[rows] for field in fields(self)))

    def shifted(self, by: int) -> Pairs:
        """Return them with the numbers that the clips have in a larger table, where the first is number `by`."""
        return replace(self, first=self.first + by, second=self.second + by)

    @property
    def positions(self) -> np.ndarray:
        """Both clips of each pair, int64 (num_pairs, 2)."""
        return np.stack([self.first, self.second], axis=1)

    @property
    def seconds(self) -> np.ndarray:
        """Seconds of sound that were compared."""
        return words_to_seconds(1) * self.words


def find_pairs(
    prints: Fingerprints, dataset: np.ndarray | None = None, wanted: Callable[[Pairs], Pairs] = lambda pairs: pairs
) -> Pairs:
    """Find the pairs of clips that share sound. `dataset`: the number of each clip's, (num_clips,), to find those between
    datasets alone; `wanted`: leaves out those that do not count."""
    audible = prints.audible
    num_ranges = max(1, -(-int(audible.sum()) // _KEYS_AT_ONCE))
    found: list[Pairs] = []
    for number in range(num_ranges):
        for some in _candidates(prints, dataset, *_keys(prints.words, number, num_ranges)):
            found.append(wanted(_compare(prints, audible, *some)))
            if sum(map(len, found[1:])) > _PAIRS_AT_ONCE:
                found = [Pairs.join(found).thinned()]
    return Pairs.join(found).thinned()


def _keys(words: np.ndarray, number: int, num_ranges: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of a range, uint64, and where each begins, int64; of equal ones in a row the first."""
    keys, places = [], []
    for at in range(0, max(0, len(words) - _SPAN), _AT_ONCE):
        some = words[at : at + _AT_ONCE + _SPAN]
        parts = [some[step * _KEY_STEP : len(some) - _SPAN + step * _KEY_STEP] for step in range(_KEY_WORDS)]
        wanted = np.logical_and.reduce([part != SILENCE for part in parts])
        key = parts[0].astype(np.uint64)
        for step, part in enumerate(parts[1:], 1):
            key |= part.astype(np.uint64) << np.uint64(BITS * step)
        wanted[1:] &= key[1:] != key[:-1]
        if num_ranges > 1:
            wanted &= ((key * _MIX) >> np.uint64(40)) % np.uint64(num_ranges) == number
        keys.append(key[wanted])
        places.append(at + np.flatnonzero(wanted))
    return np.concatenate([*keys, np.zeros(0, np.uint64)]), np.concatenate([*places, np.zeros(0, np.int64)])


def _candidates(
    prints: Fingerprints, dataset: np.ndarray | None, keys: np.ndarray, places: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield first clip, second clip and offset of clips with a key in common; each such triple once in what is yielded."""
    order = np.argsort(keys)
    keys, places = keys[order], places[order]
    same = keys[1:] == keys[:-1]
    repeated = np.zeros(len(keys), dtype=bool)
    repeated[1:] |= same
    repeated[:-1] |= same
    keys, places = keys[repeated], places[repeated]
    clips = np.searchsorted(prints.starts, places, side="right") - 1
    order = np.lexsort((places, clips, keys))
    keys, places, clips = keys[order], places[order], clips[order]
    new = np.ones(len(keys), dtype=bool)  # of a key that a clip has several times, the first
    new[1:] = (keys[1:] != keys[:-1]) | (clips[1:] != clips[:-1])
    keys, places, clips = keys[new], places[new], clips[new]
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(begins, len(keys)))
    leader = np.repeat(begins, sizes)
    rare = np.repeat(sizes <= COMMON, sizes)
    offsets = places - prints.starts[clips]
    rows = np.arange(len(keys))
    for step in range(1, COMMON):  # each with the next one of its key, the one after that, and so on
        rows = rows[rows + step < len(keys)]
        rows = rows[leader[rows] == leader[rows + step]]
        if not len(rows):
            break
        yield from _triples(dataset, clips, offsets, rows, rows + step)
        rows = rows[rare[rows]]
    common = np.flatnonzero(~rare & (np.arange(len(keys)) > leader + 1))
    yield from _triples(dataset, clips, offsets, leader[common], common)


def _triples(
    dataset: np.ndarray | None, clips: np.ndarray, offsets: np.ndarray, one: np.ndarray, other: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    if dataset is not None:
        between = dataset[clips[one]] != dataset[clips[other]]
        one, other = one[between], other[between]
    first, second, offset = clips[one], clips[other], offsets[one] - offsets[other]
    order = np.lexsort((offset, second, first))
    first, second, offset = first[order], second[order], offset[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0) | (np.diff(offset) != 0)
    if new.any():
        yield first[new], second[new], offset[new]


def _compare(prints: Fingerprints, audible: np.ndarray, first: np.ndarray, second: np.ndarray, offset: np.ndarray) -> Pairs:
    """Return those of the candidates that share sound."""
    begin = prints.starts[first] + np.maximum(offset, 0)
    other = prints.starts[second] + np.maximum(-offset, 0)
    lengths = np.minimum(
        prints.starts[first] + prints.lengths[first] - begin, prints.starts[second] + prints.lengths[second] - other
    )
    compared, wrong = np.zeros(len(first), np.int64), np.zeros(len(first), np.int64)
    ends = np.cumsum(lengths)
    at = 0
    while at < len(first):
        until = max(at + 1, int(np.searchsorted(ends, (ends[at - 1] if at else 0) + _AT_ONCE)))
        rows = slice(at, until)
        compared[rows], wrong[rows] = _count(prints.words, begin[rows], other[rows], lengths[rows])
        at = until
    error = wrong / np.maximum(compared * BITS, 1)
    shorter = np.minimum(audible[first], audible[second])
    allowed = np.where(compared < LONG, MOST_ERRORS_SHORT, MOST_ERRORS)
    taken = (compared >= LEAST_WORDS) & (compared >= LEAST_SHARE * shorter) & (error <= allowed)
    return Pairs(*(column[taken] for column in (first, second, offset, compared, error)))


def _count(words: np.ndarray, begin: np.ndarray, other: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count for each two stretches of `lengths` words those that are silence in neither, and the bits that differ there."""
    edges = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(edges, lengths)
    one, two = words[np.repeat(begin, lengths) + within], words[np.repeat(other, lengths) + within]
    both = (one != SILENCE) & (two != SILENCE)
    differ = np.bitwise_count(one ^ two) * both
    return np.add.reduceat(both, edges, dtype=np.int64), np.add.reduceat(differ, edges, dtype=np.int64)
