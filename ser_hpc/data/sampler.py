"""Choose the clips of every optimizer step, and cut a step into micro-batches that are dealt to ranks: pure functions, which
the training loop, evaluation and the benchmarks call.

1. An epoch is a permutation of the training part, a pure function of (seed, epoch). Where groups of clips (classes, corpora,
   speakers) are to count alike, clips of the smaller groups come again, until each group has as many as the largest. It is
   drawn over the whole part, or window by window, where shards are to be read in sequence (`ShardOrder`).
2. A step is the next `global_batch` clips of it (the last step of an epoch may have fewer).
3. A step is cut into micro-batches of clips of like length; or, where the model normalises clips by each other, between groups
   of clips that are next to each other in the step, whatever the memory. Micro-batch m goes to rank m mod ranks, as its turn
   m div ranks. Ranks left without one get a *filler* (weight zero), so that all ranks make the same number of forward passes.

Only 3 knows of ranks, accumulation and memory, so none of them can change what a step learns from. Nothing here is drawn from
a random state that would have to be saved: stopping after any step and going on elsewhere needs the step's number alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ser_hpc.core.errors import UserError
from ser_hpc.shards import RATE
from ser_hpc.shards.index import ShardIndex

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_AGAIN, _AUGMENT, _BLOCKS, _WEIGHTS = 0xA6A1, 0xA06, 0xB10C, 0x57E1  # what a hash is for: its uses never share numbers
BLOCK_BYTES = 16 << 20  # of a shard, read at once: as fast as the whole, and more shards have a part in a window


@dataclass(frozen=True, slots=True)
class ClipSelection:
    """The clips of a step, or of a part to evaluate: `positions` in the index, (n,).

    `seeds` (uint64), which their augmentation draws from; none: they are taken as they are. `windows` (int64) of a
    `ShardOrder`, in which they are read; none: each by itself. `partners`: the clip that each is mixed with, itself having
    the share `shares` (float64) of the mixture; none: they are not mixed (mixup.py).
    """

    positions: np.ndarray
    seeds: np.ndarray | None = None
    windows: np.ndarray | None = None
    partners: ClipSelection | None = None
    shares: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, rows: np.ndarray | slice) -> ClipSelection:
        return ClipSelection(
            self.positions[rows],
            None if self.seeds is None else self.seeds[rows],
            None if self.windows is None else self.windows[rows],
            None if self.partners is None else self.partners.take(rows),
            None if self.shares is None else self.shares[rows],
        )

    @property
    def loaded(self) -> ClipSelection:
        """Return all clips that are to be read: these, and then their partners, if they have some."""
        if self.partners is None:
            return self
        parts = (self, self.partners)
        return ClipSelection(
            np.concatenate([part.positions for part in parts]),
            _joined([part.seeds for part in parts]),
            _joined([part.windows for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Clips that go through the model together. `number` counts over all ranks of the step and seeds its dropout.

    `rows`: their places in the step, or in the part that is evaluated; none of a filler.
    """

    number: int
    clips: ClipSelection
    rows: np.ndarray

    @property
    def is_filler(self) -> bool:
        return not len(self.rows)


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """The rule by which a step is cut: `accumulation` micro-batches per rank, or else as few as `budget_samples` allows.

    `padded`: the model pads the clips of a micro-batch to its longest, so it takes clips x longest samples, not their sum.
    `group`: so many clips, at most, normalise each other: each such group is one micro-batch, and nothing else counts.
    """

    ranks: int
    budget_samples: int
    accumulation: int | None = None
    padded: bool = False
    group: int | None = None


@dataclass(frozen=True, slots=True)
class ShardOrder:
    """The rule by which clips are read shard by shard, in *windows* of about `window_bytes`.

    Shards are cut into *blocks* of neighbouring clips, `block` int64 (clips of the index,); the blocks are shuffled, and a
    window is some of them one after another: as few windows as `window_bytes` allows, as equal as can be. Where one window
    holds all, the order is the random one. `size` int64 (clips of the index,): their bytes.
    """

    block: np.ndarray
    size: np.ndarray
    window_bytes: int

    @classmethod
    def of_index(cls, index: ShardIndex, window_bytes: int, block_bytes: int = BLOCK_BYTES) -> ShardOrder:
        """Cut the shards of an index into blocks: a clip belongs to that in which it begins."""
        in_shard = index.offset // block_bytes
        block = np.unique(index.shard * (in_shard.max() + 1) + in_shard, return_inverse=True)[1]
        return cls(block, index.size, window_bytes)

    def windows(self, positions: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Number the window of each clip of a part, int64 (len(positions),). No seed: blocks come as they lie in the shards."""
        blocks, own = np.unique(self.block[positions], return_inverse=True)
        turn = np.arange(len(blocks)) if seed is None else epoch_order(seed, 0, len(blocks))
        sizes = np.bincount(own, weights=self.size[positions]).astype(np.int64)[turn]
        ends = np.cumsum(sizes)
        count = -(-ends[-1] // self.window_bytes)
        number = np.empty_like(turn)
        number[turn] = ((ends - sizes / 2) * (count / ends[-1])).astype(np.int64)  # by the middle of each
        windows: np.ndarray = number[own]
        return windows


def _joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    given = [array for array in arrays if array is not None]
    return np.concatenate(given) if given else None


def mix_seed(*numbers: int) -> int:
    """Mix several numbers into one of 64 bits (splitmix64 over each, Steele et al. 2014): seeds that never correlate."""
    state = 0
    for number in numbers:
        state = _splitmix(np.array([(state ^ number) & _MASK], dtype=np.uint64))[0].item()
    return state


def weights_seed(seed: int) -> int:
    """Return the seed that a trial's random weights are drawn with."""
    return mix_seed(seed, _WEIGHTS)


def epoch_order(seed: int, epoch: int, num_clips: int) -> np.ndarray:
    """Permute range(num_clips), int64.

    Sorted by a hash of (seed, epoch, clip) rather than drawn from a generator: the same on every machine and numpy release.
    """
    keys = _splitmix(np.arange(num_clips, dtype=np.uint64) + np.uint64(mix_seed(seed, epoch)))
    return np.argsort(keys, kind="stable")


def epoch_size(num_clips: int, groups: np.ndarray | None = None) -> int:
    """Count the clips of an epoch, repetitions included. `groups`: int (num_clips,), as in `epoch_steps`."""
    if groups is None:
        return num_clips
    sizes = np.bincount(groups)
    return int(sizes.max() * np.count_nonzero(sizes))


def epoch_steps(
    positions: np.ndarray,
    seed: int,
    epoch: int,
    global_batch: int,
    groups: np.ndarray | None = None,
    order: ShardOrder | None = None,
) -> list[ClipSelection]:
    """Choose the clips of each step of an epoch, in order.

    `groups`, int (num_clips,): each clip comes at least once, and each group as often as the largest has clips. Which clips of
    a group come once more than the others changes from epoch to epoch. `order`: window by window, a clip's repetitions in its
    own; none: over the whole part.
    """
    times = np.ones(len(positions), dtype=np.int64) if groups is None else _repeats(groups, mix_seed(seed, epoch, _AGAIN))
    rows = np.repeat(np.arange(len(positions)), times)
    copy = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    shuffled = epoch_order(seed, epoch, len(rows))
    windows = None
    if order is not None:
        windows = order.windows(positions, mix_seed(seed, epoch, _BLOCKS))[rows[shuffled]]
        by_window = np.argsort(windows, kind="stable")
        shuffled, windows = shuffled[by_window], windows[by_window]
    drawn = positions[rows[shuffled]]
    seeds = _splitmix(drawn.astype(np.uint64) ^ np.uint64(mix_seed(seed, epoch, _AUGMENT)))
    draws = ClipSelection(drawn, _splitmix(seeds ^ copy[shuffled].astype(np.uint64)), windows)
    return [draws.take(slice(start, start + global_batch)) for start in range(0, len(draws), global_batch)]


def _repeats(groups: np.ndarray, seed: int) -> np.ndarray:
    """Decide how often each clip comes, int64 (num_clips,)."""
    sizes = np.bincount(groups)
    whole, rest = np.divmod(sizes.max(), np.maximum(sizes, 1))
    chance = _splitmix(np.arange(len(groups), dtype=np.uint64) + np.uint64(seed))
    by_chance = np.lexsort((chance, groups))
    place = np.empty(len(groups), dtype=np.int64)  # of each clip within its group, by chance
    place[by_chance] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    times: np.ndarray = whole[groups] + (place < rest[groups])
    return times


def split_micro_batches(positions: np.ndarray, samples: np.ndarray, spec: BatchSpec) -> list[np.ndarray]:
    """Cut a step's clips into micro-batches of like length whose largest is as small as it can be.

    `samples` is what each clip of `positions` takes; returns the rows of each micro-batch in these arrays. A clip larger than
    the budget gets a micro-batch of its own.
    """
    by_length = np.lexsort((positions, -samples))  # longest first: running out of memory shows in the first step
    if spec.group is not None:
        number = _groups(len(positions), spec.group)[by_length]
        return [by_length[number == group] for group in range(number.max() + 1)]
    lengths = samples[by_length].tolist()
    if spec.accumulation is not None:
        ends = _smallest_largest(lengths, spec.ranks * spec.accumulation, spec.padded)
    else:
        fewest = len(_fill(lengths, max(spec.budget_samples, lengths[0]), spec.padded))
        ends = _smallest_largest(lengths, -(-fewest // spec.ranks) * spec.ranks, spec.padded)
    return np.split(by_length, ends[:-1])


def reduce_budget(spec: BatchSpec, positions: np.ndarray, samples: np.ndarray) -> BatchSpec:
    """Lower the budget after a step that took too much memory, to three quarters of its largest micro-batch.

    Raises UserError where that was a single clip, or a group.
    """
    parts = [samples[rows] for rows in split_micro_batches(positions, samples, spec)]
    largest = max(parts, key=lambda part: _size(part, spec.padded))
    if spec.group is not None:
        raise UserError(
            f"memory ran out on a group of {len(largest)} clips, {_size(largest, spec.padded) / RATE:.1f} s with padding, "
            "which normalise each other and cannot be divided: cut clips with data.max_seconds, use train.precision=bf16, a "
            "smaller model, a GPU with more memory, or smaller groups (norm_group; that is another experiment)"
        )
    if len(largest) == 1:
        raise UserError(
            f"memory ran out on a single clip of {largest[0] / RATE:.1f} s: cut clips with data.max_seconds, use "
            "train.precision=bf16, a smaller model, or a GPU with more memory"
        )
    return replace(spec, budget_samples=_size(largest, spec.padded) * 3 // 4, accumulation=None)


def _groups(num_clips: int, most: int) -> np.ndarray:
    """Number each clip's group, int64 (num_clips,): as few groups as hold `most` clips at most, as equal as can be, so
    that none is a small rest of the others."""
    count = -(-num_clips // most)
    numbers: np.ndarray = np.arange(num_clips) * count // num_clips
    return numbers


def _size(part: np.ndarray, padded: bool) -> int:
    return int(part.max() * len(part) if padded else part.sum())


def assign_to_ranks(clips: ClipSelection, parts: Sequence[np.ndarray], rank: int, ranks: int) -> list[MicroBatch]:
    """Deal a step out: this rank's micro-batches, as many as every rank's. A filler repeats the last part's shortest clip."""
    turns = -(-len(parts) // ranks)

    def micro(number: int) -> MicroBatch:
        if number < len(parts):
            return MicroBatch(number, clips.take(parts[number]), parts[number])
        return MicroBatch(number, clips.take(parts[-1][-1:]), parts[-1][:0])

    return [micro(number) for number in range(rank, turns * ranks, ranks)]


def evaluation_micro_batches(
    positions: np.ndarray, samples: np.ndarray, spec: BatchSpec, rank: int, order: ShardOrder | None = None
) -> list[MicroBatch]:
    """Deal out a pass over `positions` without gradients, this rank's share: every clip in exactly one micro-batch of one rank.

    `samples`: what each of them takes. The micro-batches follow from the budget alone, whatever the ranks and accumulation;
    with an `order`, clips of like length are sought within its windows.
    """
    windows = np.zeros(len(positions), dtype=np.int64) if order is None else order.windows(positions)
    by_length = np.lexsort((positions, -samples, windows))
    parts: list[np.ndarray] = []
    for window in np.split(by_length, np.flatnonzero(np.diff(windows[by_length])) + 1):
        lengths = samples[window].tolist()
        parts += np.split(window, _fill(lengths, max(spec.budget_samples, lengths[0]), spec.padded)[:-1])
    clips = ClipSelection(positions, windows=None if order is None else windows)
    return assign_to_ranks(clips, parts, rank, spec.ranks)


def step_micro_batches(
    steps: Iterable[ClipSelection], samples: np.ndarray, spec: BatchSpec, rank: int
) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of each of `steps`; `samples` is what every clip of the index takes."""
    for step in steps:
        yield assign_to_ranks(step, split_micro_batches(step.positions, samples[step.positions], spec), rank, spec.ranks)


def _fill(lengths: Sequence[int], cap: int, padded: bool) -> list[int]:
    """Find the ends of consecutive micro-batches filled up to `cap` samples; lengths fall, cap >= the first."""
    ends, filled, longest = [], 0, lengths[0]
    for i, length in enumerate(lengths):
        size = longest if padded else length
        if filled + size > cap:
            ends.append(i)
            filled, longest, size = 0, length, length
        filled += size
    return [*ends, len(lengths)]


def _smallest_largest(lengths: Sequence[int], count: int, padded: bool) -> list[int]:
    """Find the ends of at most `count` micro-batches whose largest is as small as can be (bisection over its size)."""
    if count == 1:
        return [len(lengths)]
    low, high = lengths[0], lengths[0] * len(lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(lengths, middle, padded)) <= count:
            high = middle
        else:
            low = middle + 1
    return _fill(lengths, low, padded)


def _splitmix(x: np.ndarray) -> np.ndarray:
    """Apply the splitmix64 step and finaliser, element by element on uint64 (wrapping)."""
    with np.errstate(over="ignore"):
        x = x * np.uint64(_GOLDEN) + np.uint64(_GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
