"""Mixup: partners and shares are the step's own, whatever cuts it up; the partner is loaded beside the clip and mixed in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import packed_tones

from ser_hpc.config.load import load_settings
from ser_hpc.config.mixup import MixupSettings, WaveformMixupSettings
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.data.batches import Batch, BatchSource
from ser_hpc.data.mixup import check_mixup, mix, pair_clips
from ser_hpc.data.sampler import BatchSpec, ClipSelection, ShardOrder, epoch_steps, step_micro_batches
from ser_hpc.shards.index import ShardIndex
from ser_hpc.tasks.task import ClipTargets

SEED, GLOBAL_BATCH = 3, 20
MIXUP = WaveformMixupSettings(alpha=0.4, p=0.8)
NOISE = load_settings(None, ["data.augment=[{name: AddGaussianNoise, p: 0.5}]"]).data.augment


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return ShardIndex.load(packed_tones(tmp_path_factory.getbasetemp()))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 2**40), st.integers(0, 1000))
def test_each_clip_is_one_clips_partner_and_a_step_draws_for_itself(sizes: list[int], seed: int, first: int) -> None:
    steps = [ClipSelection(100 * number + np.arange(size)) for number, size in enumerate(sizes)]
    paired = pair_clips(steps, MIXUP, seed, first)
    for step, mixed in zip(steps, paired, strict=True):
        assert mixed.partners is not None and mixed.shares is not None
        assert (mixed.positions == step.positions).all()
        assert sorted(mixed.partners.positions) == step.positions.tolist()
        assert len(step) == 1 or (mixed.partners.positions != step.positions).all(), "no clip is its own"
        assert ((mixed.shares >= 0) & (mixed.shares <= 1)).all()
    later = pair_clips(steps[1:], MIXUP, seed, first + 1)  # as a resume draws them
    for mixed, again in zip(paired[1:], later, strict=True):
        assert (mixed.shares == again.shares).all() and (mixed.partners.positions == again.partners.positions).all()  # type: ignore[union-attr]


def test_shares_are_as_beta_has_them_and_only_so_many_clips_are_mixed() -> None:
    (step,) = pair_clips([ClipSelection(np.arange(20_000))], MIXUP, 1, 0)
    assert step.shares is not None
    mixed = step.shares[step.shares < 1]
    assert len(mixed) / 20_000 == pytest.approx(0.8, abs=0.02)
    assert mixed.mean() == pytest.approx(0.5, abs=0.02)
    assert mixed.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)


def source(index: ShardIndex, **options: object) -> BatchSource:
    targets = np.arange(len(index.metadata)) % 3
    return BatchSource(index, ClipTargets.of_main(targets, 1 + targets.astype(np.float32)), **options)  # type: ignore[arg-type]


def batches(made: BatchSource, ranks: int = 1, budget: int = 80_000, order: ShardOrder | None = None) -> list[list[Batch]]:
    """Of each rank, those of an epoch."""
    index = made._index
    steps = epoch_steps(np.arange(len(index.metadata)), SEED, 0, GLOBAL_BATCH, order=order)
    steps = pair_clips(steps, MIXUP, SEED, 0)
    spec = BatchSpec(ranks, budget)
    dealt = [[m for step in step_micro_batches(steps, index.num_samples, spec, rank) for m in step] for rank in range(ranks)]
    return [list(made.prefetch(micros, training=True)) for micros in dealt]


def by_clip(of_ranks: list[list[Batch]]) -> dict[int, tuple[object, ...]]:
    """What stands for each clip: its sound, targets and weights, and its partner's. Each comes once an epoch."""
    found: dict[int, tuple[object, ...]] = {}
    for batch in (batch for of_rank in of_ranks for batch in of_rank if len(batch.rows)):
        assert batch.partners is not None
        for i, position in enumerate(batch.positions.tolist()):
            values = [batch.targets, batch.weights, batch.partners.targets, batch.partners.weights]
            sound = batch.samples[batch.offsets[i] : batch.offsets[i + 1]].numpy()
            assert position not in found and sound.dtype == np.float32
            found[position] = (sound.tobytes(), *(float(each["emotion"][i]) for each in values))
    return found


def test_no_cut_into_micro_batches_ranks_workers_or_windows_changes_a_bit(index: ShardIndex) -> None:
    with source(index, mixup=MIXUP, augment=NOISE) as made:
        whole = by_clip(batches(made, budget=10**9))
        assert len(whole) == len(index.metadata)
        assert by_clip(batches(made, ranks=3, budget=40_000)) == whole
    with source(index, mixup=MIXUP, augment=NOISE, workers=1, window_bytes=100_000) as made:
        assert by_clip(batches(made, ranks=2)) == whole


def test_shards_read_in_sequence_bring_partners_along(index: ShardIndex) -> None:
    order = ShardOrder.of_index(index, int(index.size.sum()) // 3, block_bytes=30_000)
    with source(index, mixup=MIXUP) as plain:
        expected = by_clip(batches(plain, order=order))
    with source(index, mixup=MIXUP, ahead_bytes=order.window_bytes) as made:
        assert by_clip(batches(made, ranks=2, order=order)) == expected


def test_a_clip_is_the_sum_of_both_and_keeps_its_length(index: ShardIndex) -> None:
    with source(index) as plain:
        steps = epoch_steps(np.arange(len(index.metadata)), SEED, 0, GLOBAL_BATCH)
        micros = [m for step in step_micro_batches(steps, index.num_samples, BatchSpec(1, 10**9), 0) for m in step]
        alone = {
            position: batch.samples[batch.offsets[i] : batch.offsets[i + 1]].numpy() / np.float32(32768)
            for batch in plain.prefetch(micros, training=True)
            for i, position in enumerate(batch.positions.tolist())
        }
    steps = pair_clips(steps, MIXUP, SEED, 0)
    with source(index, mixup=MIXUP) as made:
        mixed = by_clip(batches(made))
    for step in steps:
        assert step.partners is not None and step.shares is not None
        for position, partner, share in zip(step.positions, step.partners.positions, step.shares, strict=True):
            sound, target, weight, of_partner, their_weight = mixed[position]
            clip = np.frombuffer(sound, np.float32)  # type: ignore[arg-type]
            shorter = min(len(alone[position]), len(alone[partner]))
            expected = share * alone[position]
            expected[:shorter] += (1 - share) * alone[partner][:shorter]
            np.testing.assert_allclose(clip, expected, atol=1e-6)
            assert (target, of_partner) == (position % 3, partner % 3)
            assert weight == pytest.approx(share * (1 + position % 3)) and their_weight == pytest.approx(
                (1 - share) * (1 + partner % 3)
            )


def test_what_another_class_mixes_is_held_to_the_clips_length() -> None:
    class Half(MixupSettings):
        def build(self):  # type: ignore[no-untyped-def]
            return lambda clip, partner, share: clip[: len(clip) // 2]

    told = r"mine:Half: it returned ndarray of shape \(8000,\), float32, and must return an array of floats as long as the clip"
    with pytest.raises(UserError, match=told):
        check_mixup(Half(kind="mine:Half"))
    assert mix(np.ones(3, np.float32), np.ones(1, np.float32), 0.25).tolist() == [1.0, 0.25, 0.25]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("data.mixup=waveform", "tasks={affect: {kind: numbers, columns: [arousal], range: [1, 5]}}"),
            r"data\.mixup mixes classes and distributions, and tasks\.affect learns numbers by concordance",
        ),
        (("data.mixup=pooled",), r"data\.mixup\.kind=pooled mixes the pooled states of a frozen encoder"),
        (("data.mixup=waveform", "model.freeze=encoder", "model.head.kind=probe"), "probe sees each clip once"),
        (("data.mixup=wave",), "did you mean waveform"),
    ],
)
def test_what_cannot_be_mixed_is_refused(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_settings(None, list(overrides))


def test_a_frozen_encoder_runs_in_every_epoch_on_mixed_sound_and_once_for_mixed_states() -> None:
    frozen = ["model.freeze=encoder"]
    assert load_settings(None, [*frozen, "data.mixup=pooled"]).uses_feature_cache
    assert not load_settings(None, [*frozen, "data.mixup=waveform"]).uses_feature_cache
