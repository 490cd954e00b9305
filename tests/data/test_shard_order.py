"""An order by shards is as exact as the random one, and reads each block of a window once, in memory that is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import packed_tones

from ser_hpc.config.load import load_settings
from ser_hpc.config.schema import identity
from ser_hpc.core.errors import UserError
from ser_hpc.data.batches import BatchSource
from ser_hpc.data.read_ahead import ReadAhead
from ser_hpc.data.sampler import (
    BatchSpec,
    MicroBatch,
    ShardOrder,
    epoch_size,
    epoch_steps,
    evaluation_micro_batches,
    step_micro_batches,
)
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ClipReader, Extent, Payload, clip_extents
from ser_hpc.tasks.task import ClipTargets

SEED, GLOBAL_BATCH, BLOCK = 3, 20, 100_000
NOISE = load_settings(None, ["data.augment=[{name: AddGaussianNoise, p: 0.5}]"]).data.augment


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return ShardIndex.load(packed_tones(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def order(index: ShardIndex) -> ShardOrder:
    """Blocks of a few clips, in windows of several blocks: an epoch has about six."""
    made = ShardOrder.of_index(index, 4 * BLOCK, BLOCK)
    assert made.block.max() > 20 and index.size.sum() > 5 * made.window_bytes
    return made


@st.composite
def orders(draw: st.DrawFn) -> ShardOrder:
    blocks = draw(st.lists(st.integers(1, 30), min_size=1, max_size=30))  # clips of each
    sizes = draw(st.lists(st.integers(1, 1000), min_size=sum(blocks), max_size=sum(blocks)))
    return ShardOrder(np.repeat(np.arange(len(blocks)), blocks), np.array(sizes), draw(st.integers(1, 2 * sum(sizes))))


@given(orders(), st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 64), st.data())
def test_windows_hold_whole_blocks_and_every_clip_comes_once(
    order: ShardOrder, seed: int, epoch: int, batch: int, data: st.DataObject
) -> None:
    """Of any part: each clip once, window after window, a block in one window, no window larger than it may be."""
    chosen = data.draw(st.lists(st.booleans(), min_size=len(order.block), max_size=len(order.block)).filter(any))
    positions = np.flatnonzero(chosen)
    steps = epoch_steps(positions, seed, epoch, batch, order=order)
    assert all(len(step) == batch for step in steps[:-1])
    drawn = np.concatenate([step.positions for step in steps])
    windows = np.concatenate([step.windows for step in steps if step.windows is not None])
    assert sorted(drawn) == positions.tolist()
    assert (np.diff(windows) >= 0).all() and len(windows) == len(drawn)
    assert len(set(zip(order.block[drawn].tolist(), windows.tolist(), strict=True))) == len(set(order.block[drawn].tolist()))
    largest_block = np.bincount(order.block[positions], weights=order.size[positions]).max()
    assert np.bincount(windows, weights=order.size[drawn]).max() <= order.window_bytes + largest_block
    again = epoch_steps(positions, seed, epoch, batch, order=order)
    assert all((a.positions == b.positions).all() and (a.seeds == b.seeds).all() for a, b in zip(steps, again, strict=True))


@given(orders(), st.integers(0, 2**40), st.integers(0, 1000), st.data())
def test_repeated_clips_come_in_their_window_each_with_a_seed_of_its_own(
    order: ShardOrder, seed: int, epoch: int, data: st.DataObject
) -> None:
    count = len(order.block)
    groups = np.array(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    steps = epoch_steps(np.arange(count), seed, epoch, 7, groups, order)
    drawn, windows, seeds = (
        np.concatenate([getattr(step, name) for step in steps]) for name in ("positions", "windows", "seeds")
    )
    assert len(drawn) == epoch_size(count, groups) and len(set(seeds.tolist())) == len(drawn)
    assert len(set(zip(drawn.tolist(), windows.tolist(), strict=True))) == count == len(set(drawn.tolist()))
    random = epoch_steps(np.arange(count), seed, epoch, 7, groups)
    pairs = {(p, s) for step in random for p, s in zip(step.positions.tolist(), step.seeds.tolist(), strict=True)}
    assert pairs == set(zip(drawn.tolist(), seeds.tolist(), strict=True)), "augmented as in the random order"


@given(orders(), st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 64))
def test_one_window_is_the_random_order(order: ShardOrder, seed: int, epoch: int, batch: int) -> None:
    whole = ShardOrder(order.block, order.size, int(order.size.sum()))
    positions = np.arange(len(order.block))
    pairs = zip(
        epoch_steps(positions, seed, epoch, batch, order=whole), epoch_steps(positions, seed, epoch, batch), strict=True
    )
    assert all((ours.positions == random.positions).all() for ours, random in pairs)


def test_blocks_and_clips_are_shuffled_anew_each_epoch_and_fairly() -> None:
    """Over many epochs each block stands in each window, and each clip at each place of its window, about equally often."""
    order = ShardOrder(np.repeat(np.arange(6), 4), np.full(24, 10), 80)  # three windows of two blocks
    epochs = [np.concatenate([s.positions for s in epoch_steps(np.arange(24), 1, e, 5, order=order)]) for e in range(3000)]
    places = np.stack([np.argsort(epoch) for epoch in epochs])
    for clip in (0, 7, 23):
        assert abs(np.bincount(places[:, clip], minlength=24) / 3000 - 1 / 24).max() < 0.015
    together = np.mean(places[:, 0] // 8 == places[:, 4] // 8)  # two blocks in one window
    assert abs(together - 1 / 5) < 0.03


def test_the_order_never_changes() -> None:
    """A resume with a newer numpy or on another machine must see the same clips."""
    order = ShardOrder(np.repeat(np.arange(4), 3), np.arange(12) + 5, 60)
    (step,) = epoch_steps(np.arange(12), 3, 5, 100, order=order)
    assert step.windows is not None
    assert step.positions.tolist() == [3, 5, 4, 6, 2, 8, 0, 7, 1, 10, 9, 11]
    assert step.windows.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]


@given(orders(), st.integers(1, 6), st.integers(1, 5000))
def test_evaluation_sees_each_clip_once_window_by_window_whatever_the_ranks(order: ShardOrder, ranks: int, budget: int) -> None:
    positions = np.arange(len(order.block))[::-1]
    shares = [
        evaluation_micro_batches(positions, order.size[positions], BatchSpec(ranks, budget), r, order) for r in range(ranks)
    ]
    assert len({len(share) for share in shares}) == 1
    real = sorted((m for share in shares for m in share if not m.is_filler), key=lambda micro: micro.number)
    assert sorted(np.concatenate([m.clips.positions for m in real])) == sorted(positions.tolist())
    assert all((positions[m.rows] == m.clips.positions).all() for m in real)
    windows = [set(np.asarray(m.clips.windows).tolist()) for m in real]
    assert all(len(each) == 1 for each in windows)
    numbers = [each.pop() for each in windows]
    assert numbers == sorted(numbers)
    alone = {
        tuple(m.clips.positions)
        for m in evaluation_micro_batches(positions, order.size[positions], BatchSpec(1, budget), 0, order)
    }
    assert {tuple(m.clips.positions) for m in real} == alone


def epoch(
    index: ShardIndex, order: ShardOrder, ranks: int = 1, rank: int = 0, first: int = 0, number: int = 0, balanced: bool = False
) -> list[MicroBatch]:
    everything = np.arange(len(index.metadata))
    groups = np.where(everything < len(everything) // 6, 0, 1) if balanced else None  # of the sixth each comes five times
    steps = epoch_steps(everything, SEED, number, GLOBAL_BATCH, groups, order)[first:]
    return [micro for step in step_micro_batches(steps, index.num_samples, BatchSpec(ranks, 80_000), rank) for micro in step]


class CountingReader(ClipReader):
    """A reader of the index that notes what it fetched with one read, and how much that was."""

    def __init__(self, index: ShardIndex, held: Sequence[int] = ()) -> None:
        super().__init__(index.roots, coalesce=True)
        self.fetched: list[list[Extent]] = []
        self._held = set(clip_extents(index, list(held)))

    def fetch(self, wanted: Sequence[Extent]) -> list[Payload]:
        self.fetched.append([*wanted])
        return super().fetch(wanted)

    def holds(self, extent: Extent) -> bool:
        return extent in self._held


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("ranks", "first"), [(1, 0), (1, 3), (3, 0), (5, 2)])
def test_each_clip_is_fetched_once_with_its_block_and_no_more_waits_than_allowed(
    index: ShardIndex, order: ShardOrder, ranks: int, first: int, balanced: bool
) -> None:
    """Every payload is the clip's; a rank reads a block once; what was fetched and not handed out is bounded."""
    limit = order.window_bytes // ranks
    for rank in range(ranks):
        reader, micros = CountingReader(index), epoch(index, order, ranks, rank, first, balanced=balanced)
        left = Counter(position for micro in micros for position in micro.clips.positions.tolist())
        ahead, taken, most = ReadAhead(reader, index, limit), 0, 0
        for micro, payloads in ahead(micros):
            extents = clip_extents(index, micro.clips.positions)
            assert payloads == ClipReader(index.roots).fetch(extents)
            for extent, position in zip(extents, micro.clips.positions.tolist(), strict=True):
                left[position] -= 1
                taken += extent.size * (not left[position])
            most = max(most, sum(extent.size for read in [*reader.fetched] for extent in read) - taken)
        ahead.close()
        fetched = [extent for read in reader.fetched for extent in read]
        assert len(fetched) == len(set(fetched)) == len(left)
        blocks = {int(order.block[p]) for p in left}
        assert len(reader.fetched) <= len(blocks)
        needed: Counter[int] = Counter()  # of each window
        for position, window in {(p, w) for micro in micros for p, w in zip(*map(np.ndarray.tolist, both(micro)), strict=True)}:
            needed[window] += int(index.size[position])
        largest = max(sum(extent.size for extent in read) for read in reader.fetched)
        assert most <= max(limit, *needed.values()) + largest


def both(micro: MicroBatch) -> tuple[np.ndarray, np.ndarray]:
    assert micro.clips.windows is not None
    return micro.clips.positions, micro.clips.windows


def test_clips_in_memory_are_not_fetched(index: ShardIndex, order: ShardOrder) -> None:
    held = range(0, len(index.metadata), 2)
    reader, micros = CountingReader(index, held), epoch(index, order)
    payloads = {p: of for micro, found in ReadAhead(reader, index, order.window_bytes)(micros)
                for p, of in zip(micro.clips.positions.tolist(), found, strict=True)}  # fmt: skip
    assert {p for p, of in payloads.items() if of == b""} == set(held)
    assert len({extent for read in reader.fetched for extent in read}) == len(index.metadata) - len(held)


def sounds(index: ShardIndex, micros: Sequence[MicroBatch], **options: int) -> list[tuple[object, ...]]:
    """All of each batch, twice in a row, as in two epochs."""
    count = len(index.metadata)
    targets = ClipTargets.of_main(np.zeros(count, dtype=np.int64), np.ones(count, dtype=np.float32))
    with BatchSource(index, targets, augment=NOISE, **options) as source:
        assert (source.measure_throughput(micros[:3], 0.01) or 0) > 0
        return [
            (batch.number, batch.rows.tolist(), batch.positions.tolist(), batch.samples.numpy().tobytes())
            for _ in range(2)
            for batch in source.prefetch(micros, training=True)
        ]


def test_reading_ahead_changes_no_bit(index: ShardIndex, order: ShardOrder) -> None:
    """By a thread that keeps what it decoded or not, or by processes; in training and evaluation."""
    everything = np.arange(len(index.metadata))
    dev = evaluation_micro_batches(everything, index.num_samples, BatchSpec(1, 80_000), 0, order)
    for micros in (epoch(index, order, ranks=2, rank=1, first=2, balanced=True), dev):
        expected = sounds(index, micros)
        assert expected == sounds(index, micros, ahead_bytes=order.window_bytes)
        assert expected == sounds(index, micros, ahead_bytes=1, keep_bytes=3_000_000)
    assert expected == sounds(index, micros, ahead_bytes=order.window_bytes, workers=1)


def test_a_shard_that_is_gone_ends_it_in_words(index: ShardIndex, order: ShardOrder, tmp_path: Path) -> None:
    targets = ClipTargets.of_main(np.zeros(len(index.metadata), dtype=np.int64), np.ones(len(index.metadata)))
    gone = replace(index, roots=(tmp_path,))
    with BatchSource(gone, targets, ahead_bytes=1) as source, pytest.raises(UserError, match="cannot be read"):
        next(source.prefetch(epoch(index, order), training=True))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("data.order=shards", "data.window_mb=0"), "data.window_mb: Input should be greater than or equal to 0.1"),
        (("data.window_mb=64",), "data.window_mb=64 is of data.order=shards"),
        (("data.order=shards", "data.prefetch_mb=8"), "data.prefetch_mb is of data.order=random"),
        (("data.order=tars",), "data.order: Input should be 'random' or 'shards'; given 'tars'"),
    ],
)
def test_settings_that_say_two_things_are_refused(given: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_settings(None, list(given))


def test_the_order_names_a_run_and_the_random_one_does_not() -> None:
    assert identity(load_settings(None, ["data.order=random"])) == {}
    assert identity(load_settings(None, ["data.order=shards"])) == {"data": {"order": "shards"}}
    assert identity(load_settings(None, ["data.order=shards"]), 2) == {"data": {"order": "shards"}}
    assert identity(load_settings(None, ["data.order=shards"]), 1) is None
