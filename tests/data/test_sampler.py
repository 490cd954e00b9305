"""Who comes when: a step's clips depend on (seed, epoch, step, global batch) alone, and every clip comes once."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ser_hpc.core.errors import UserError
from ser_hpc.data.sampler import (
    BatchSpec,
    ClipSelection,
    assign_to_ranks,
    epoch_order,
    epoch_size,
    epoch_steps,
    evaluation_micro_batches,
    mix_seed,
    reduce_budget,
    split_micro_batches,
    step_micro_batches,
)

RATE = 16_000
lengths = st.lists(st.integers(400, 30 * RATE), min_size=1, max_size=200)


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 300), st.integers(1, 64))
def test_every_clip_once_an_epoch(seed: int, epoch: int, clips: int, batch: int) -> None:
    positions = np.arange(1000, 1000 + clips)
    steps = epoch_steps(positions, seed, epoch, batch)
    assert len(steps) == -(-clips // batch)
    assert all(len(step) == batch for step in steps[:-1])
    assert sorted(np.concatenate([step.positions for step in steps])) == positions.tolist()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 2**40), st.integers(0, 1000))
def test_balanced_groups_come_equally_often_and_every_clip_comes(groups: list[int], seed: int, epoch: int) -> None:
    codes = np.array(groups)
    drawn = np.concatenate([step.positions for step in epoch_steps(np.arange(len(codes)), seed, epoch, 7, codes)])
    times = np.bincount(drawn, minlength=len(codes))
    assert len(drawn) == epoch_size(len(codes), codes) and times.min() >= 1
    assert {np.bincount(codes[drawn])[code] for code in groups} == {np.bincount(codes).max()}
    for code in set(groups):
        assert np.ptp(times[codes == code]) <= 1


def test_a_clip_that_comes_again_is_augmented_anew_and_the_extra_ones_change_from_epoch_to_epoch() -> None:
    codes = np.array([0] * 10 + [1] * 3)
    epochs = [epoch_steps(np.arange(13), 0, epoch, 100, codes)[0] for epoch in range(20)]
    assert len({seed for draws in epochs for seed in draws.seeds.tolist()}) == 20 * 20
    assert len({np.bincount(draws.positions)[10:].tobytes() for draws in epochs}) == 3


def test_epochs_and_seeds_differ() -> None:
    orders = {epoch_order(seed, epoch, 50).tobytes() for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_order_is_fair() -> None:
    """Over many epochs, each clip stands in each place about equally often."""
    places = np.stack([np.argsort(epoch_order(7, epoch, 10)) for epoch in range(4000)])
    counts = np.stack([np.bincount(places[:, clip], minlength=10) for clip in range(10)])
    assert abs(counts / 4000 - 0.1).max() < 0.02


def test_order_never_changes() -> None:
    """A resume with a newer numpy or on another machine must see the same clips."""
    assert epoch_order(3, 5, 8).tolist() == [6, 2, 0, 7, 3, 1, 5, 4]
    assert mix_seed(1, 2, 3) == 1884114840797188290


@given(lengths, st.integers(1, 6), st.one_of(st.none(), st.integers(1, 6)), st.integers(RATE, 100 * RATE))
def test_cutting_loses_and_repeats_nothing(samples: list[int], ranks: int, accumulation: int | None, budget: int) -> None:
    """On every number of ranks: each clip in one micro-batch of one rank, as many turns for all, fillers apart."""
    positions = np.arange(len(samples)) * 3 + 1
    parts = split_micro_batches(positions, np.array(samples), BatchSpec(ranks, budget, accumulation))
    shares = [assign_to_ranks(ClipSelection(positions), parts, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    dealt = [micro for share in shares for micro in share]
    assert len({micro.number for micro in dealt}) == len(dealt)
    real = np.concatenate([micro.clips.positions for micro in dealt if not micro.is_filler])
    assert sorted(real) == positions.tolist()
    if accumulation is not None:
        assert len(shares[0]) <= accumulation


@given(lengths, st.integers(1, 6), st.integers(RATE, 100 * RATE), st.booleans())
def test_a_micro_batch_keeps_to_the_budget(samples: list[int], ranks: int, budget: int, padded: bool) -> None:
    """The padding of a model that pads included; a clip that is longer than the budget alone comes alone."""
    sizes = np.array(samples)
    for part in split_micro_batches(np.arange(len(samples)), sizes, BatchSpec(ranks, budget, padded=padded)):
        assert (len(part) * sizes[part].max() if padded else sizes[part].sum()) <= max(budget, sizes.max())


@given(lengths, st.integers(1, 8))
def test_micro_batches_do_not_depend_on_who_computes_them(samples: list[int], half: int) -> None:
    """1 rank with 2n accumulation steps and 2 ranks with n make the same micro-batches with the same numbers."""
    positions, sizes = np.arange(len(samples)), np.array(samples)
    alone = assign_to_ranks(ClipSelection(positions), split_micro_batches(positions, sizes, BatchSpec(1, RATE, 2 * half)), 0, 1)
    parts = split_micro_batches(positions, sizes, BatchSpec(2, RATE, half))
    together = sorted(
        (m for rank in (0, 1) for m in assign_to_ranks(ClipSelection(positions), parts, rank, 2) if not m.is_filler),
        key=lambda m: m.number,
    )
    assert [m.clips.positions.tolist() for m in alone] == [m.clips.positions.tolist() for m in together]
    assert [m.number for m in alone] == [m.number for m in together]


@given(lengths, st.integers(1, 6), st.integers(RATE, 100 * RATE), st.integers(1, 40))
def test_groups_are_never_divided(samples: list[int], ranks: int, budget: int, most: int) -> None:
    """Clips next to each other in the step, as equal groups as can be, the same ones with the same numbers whatever the cut."""
    positions, sizes = np.arange(len(samples)) * 3 + 1, np.array(samples)
    how = BatchSpec(ranks, budget, padded=True, group=most)
    parts = split_micro_batches(positions, sizes, how)
    assert np.concatenate([np.sort(part) for part in parts]).tolist() == list(range(len(samples)))
    lengths = [len(part) for part in parts]
    assert len(parts) == -(-len(samples) // most) and max(lengths) <= most and max(lengths) - min(lengths) <= 1
    dealt = [
        micro
        for rank in range(ranks)
        for micro in assign_to_ranks(ClipSelection(positions), parts, rank, ranks)
        if not micro.is_filler
    ]
    alone = assign_to_ranks(
        ClipSelection(positions), split_micro_batches(positions, sizes, BatchSpec(1, 80 * RATE, group=most)), 0, 1
    )
    assert {micro.number: micro.rows.tolist() for micro in dealt} == {micro.number: micro.rows.tolist() for micro in alone}
    with pytest.raises(UserError, match=r"group of \d+ clips, .*norm_group"):
        reduce_budget(how, positions, sizes)


def test_cuts_never_change() -> None:
    """A resume with another release must draw the same dropout: of micro-batches with the same clips and numbers."""
    seen = hashlib.sha256()
    for case in range(200):
        clips, ranks, seconds, often, padded, batch = (1 + mix_seed(case, i) % n for i, n in enumerate((90, 5, 100, 4, 2, 40)))
        samples = np.array([400 + mix_seed(case, 9, clip) % (20 * RATE) for clip in range(clips)])
        how = BatchSpec(ranks, seconds * RATE, (None, 1, 2, 3)[often - 1], padded == 2)
        steps = epoch_steps(np.arange(clips), case, 0, batch)
        for rank in range(ranks):
            for micros in step_micro_batches(steps, samples, how, rank):
                for micro in micros:
                    assert micro.clips.seeds is not None
                    told = (micro.number, micro.rows.tolist(), micro.clips.positions.tolist(), micro.clips.seeds.tolist())
                    seen.update(repr(told).encode())
    assert seen.hexdigest() == "625036e9f09665e2584c83e018ee74f3b8e915c6a8b09b2662f06e90d0c8f8ae"


@given(lengths, st.integers(1, 6), st.integers(RATE, 100 * RATE))
def test_evaluation_sees_each_clip_once_whatever_the_ranks(samples: list[int], ranks: int, budget: int) -> None:
    positions, sizes = np.arange(len(samples)), np.array(samples)
    shares = [evaluation_micro_batches(positions, sizes, BatchSpec(ranks, budget), rank) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    real = [micro for share in shares for micro in share if not micro.is_filler]
    assert sorted(np.concatenate([m.clips.positions for m in real])) == positions.tolist()
    alone = {tuple(m.clips.positions) for m in evaluation_micro_batches(positions, sizes, BatchSpec(1, budget), 0)}
    assert {tuple(m.clips.positions) for m in real} == alone
