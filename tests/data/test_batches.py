"""The same batches, in the same order, bit for bit, whoever makes them; each clip once; damage weighs nothing and is told."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small import packed_tones

from ser_hpc.config.load import load_settings
from ser_hpc.config.transforms import Transform
from ser_hpc.core import cores
from ser_hpc.core.errors import UserError
from ser_hpc.core.process_pool import IGNORED_SIGNALS
from ser_hpc.data.batches import Batch, BatchSource
from ser_hpc.data.prefetch import SILENCE, default_workers
from ser_hpc.data.sampler import (
    BatchSpec,
    ClipSelection,
    MicroBatch,
    assign_to_ranks,
    epoch_steps,
    evaluation_micro_batches,
    step_micro_batches,
)
from ser_hpc.engine.fault.preemption import STOP_SIGNALS
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import CorruptClipError, CorruptionCause
from ser_hpc.tasks.task import ClipTargets

SEED, GLOBAL_BATCH = 3, 20
NOISE = load_settings(
    None, ["data.augment=[{name: AddGaussianNoise, p: 0.5}, {name: TimeMask, p: 0.5}, {name: Trim, p: 0.3}]"]
).data.augment

# Has two workers, prints their process ids, and waits for ever.
HOLDS_WORKERS = """
import sys, time
from pathlib import Path
import numpy as np
from ser_hpc.data.batches import BatchSource
from ser_hpc.data.sampler import BatchSpec, evaluation_micro_batches
from ser_hpc.shards.index import ShardIndex
from ser_hpc.tasks.task import ClipTargets
if __name__ == "__main__":
    index = ShardIndex.load(Path(sys.argv[1]))
    everything = np.arange(len(index.metadata))
    source = BatchSource(index, ClipTargets.of_main(np.zeros(len(everything)), np.ones(len(everything))), workers=2)
    micros = evaluation_micro_batches(everything, index.num_samples, BatchSpec(1, 50_000), 0)
    batches = [len(batch.rows) for batch in source.prefetch(micros)]
    print(*source._prefetch.pids, flush=True)
    for line in sys.stdin:
        print(sum(len(batch.rows) for batch in source.prefetch(micros)), flush=True)
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_tones(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def index(shards: Path) -> ShardIndex:
    return ShardIndex.load(shards)


def everything(index: ShardIndex) -> np.ndarray:
    return np.arange(len(index.metadata))


def source(index: ShardIndex, **options: object) -> BatchSource:
    targets = np.arange(len(index.metadata)) % 3
    return BatchSource(index, ClipTargets.of_main(targets, 1 + targets.astype(np.float32)), **options)  # type: ignore[arg-type]


def epoch(index: ShardIndex, ranks: int, rank: int, first_step: int = 0, epoch: int = 0) -> list[list[MicroBatch]]:
    """A rank's micro-batches of the steps of an epoch, from `first_step` on."""
    steps = epoch_steps(everything(index), SEED, epoch, GLOBAL_BATCH)[first_step:]
    return list(step_micro_batches(steps, index.num_samples, BatchSpec(ranks, 80_000), rank))


def flat(steps: list[list[MicroBatch]]) -> list[MicroBatch]:
    return [micro for step in steps for micro in step]


def content(batch: Batch) -> tuple[object, ...]:
    tensors = (batch.samples, batch.offsets, batch.targets["emotion"], batch.weights["emotion"], batch.damaged)
    return (
        batch.number,
        batch.rows.tolist(),
        batch.positions.tolist(),
        *(bytes(t.numpy()) for t in tensors),
        batch.samples.dtype,
    )


def contents(made: BatchSource) -> list[tuple[object, ...]]:
    return [content(batch) for batch in made.prefetch(flat(epoch(made._index, 1, 0)), training=True)]


@pytest.fixture(scope="module")
def expected(index: ShardIndex) -> list[tuple[object, ...]]:
    with source(index, augment=NOISE) as made:
        return contents(made)


@pytest.mark.parametrize(
    ("workers", "window_bytes", "augment"), [(0, 200_000, NOISE), (2, 100_000, NOISE), (1, 0, ()), (4, 0, ())]
)
def test_workers_and_windows_change_no_bit(
    index: ShardIndex, expected: list[tuple[object, ...]], workers: int, window_bytes: int, augment: tuple[Transform, ...]
) -> None:
    """Twice in a row, as in two epochs and after an evaluation: workers stay."""
    if not augment:
        with source(index) as plain:
            expected = contents(plain)
    with source(index, augment=augment, workers=workers, window_bytes=window_bytes) as made:
        for _ in range(2):
            assert contents(made) == expected
            list(made.prefetch(evaluation_micro_batches(everything(index), index.num_samples, BatchSpec(1, 80_000), 0)))


def clips_of(batch: Batch) -> Iterator[tuple[int, bytes]]:
    """Position and sound of each clip that is no filler."""
    if len(batch.rows):
        ends = batch.offsets.tolist()
        for i, position in enumerate(batch.positions.tolist()):
            yield position, bytes(batch.samples[ends[i] : ends[i + 1]].numpy())


@pytest.mark.parametrize("ranks", range(1, 17))
def test_each_clip_once_an_epoch_on_any_ranks_and_sounding_the_same(index: ShardIndex, ranks: int) -> None:
    """Any number of ranks makes the same clips of an epoch, augmented alike, each exactly once."""

    def made(size: int) -> dict[int, bytes]:
        with source(index, augment=NOISE) as batches:
            clips = [clip for rank in range(size) for batch in batches.prefetch(flat(epoch(index, size, rank)), training=True)
                     for clip in clips_of(batch)]  # fmt: skip
        assert len(clips) == len(index.metadata)
        return dict(clips)

    assert made(ranks) == made(1)


@pytest.mark.parametrize(("stop", "before", "after"), [(1, 1, 3), (4, 4, 1), (5, 3, 16), (7, 2, 5)])
def test_going_on_elsewhere_loses_and_repeats_nothing(index: ShardIndex, stop: int, before: int, after: int) -> None:
    """Stopped after any step and resumed on another number of ranks: each step's clips are the uninterrupted epoch's."""

    def steps(ranks: int, first: int = 0) -> list[set[int]]:
        shares = [epoch(index, ranks, rank, first) for rank in range(ranks)]
        return [
            {int(p) for share in shares for micro in share[step] if not micro.is_filler for p in micro.clips.positions}
            for step in range(len(shares[0]))
        ]

    whole = steps(1)
    assert steps(before)[:stop] + steps(after, stop) == whole
    assert sorted(position for step in whole for position in step) == everything(index).tolist()


def test_clips_are_augmented_in_training_only_and_anew_each_epoch(index: ShardIndex) -> None:
    with source(index, augment=NOISE) as made, source(index) as plain:
        evaluation = evaluation_micro_batches(everything(index), index.num_samples, BatchSpec(1, 80_000), 0)
        assert [content(batch) for batch in made.prefetch(evaluation)] == [
            content(batch) for batch in plain.prefetch(evaluation)
        ]
        first, second = (
            dict(
                clip
                for batch in made.prefetch(flat(epoch(index, 1, 0, epoch=number)), training=True)
                for clip in clips_of(batch)
            )
            for number in (0, 1)
        )
    changed = sum(first[position] != second[position] for position in first)
    assert changed > len(first) / 2


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_states_are_left_alone(index: ShardIndex, workers: int) -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # type: ignore[union-attr]
    with source(index, augment=NOISE, workers=workers) as made:
        list(made.prefetch(flat(epoch(index, 1, 0)), training=True))
    after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # type: ignore[union-attr]
    assert after == states


def damaged(shards: Path, where: Path) -> tuple[ShardIndex, int]:
    """A copy of the shards with a byte of one clip's payload changed, and its position."""
    index = ShardIndex.load(Path(shutil.copytree(shards, where)))
    position = 40
    tar = index.roots[0] / index.shards[index.shard[position]].path
    assert isinstance(tar, Path)
    whole = bytearray(tar.read_bytes())
    whole[index.offset[position] + index.size[position] // 2] ^= 1
    tar.write_bytes(whole)
    return index, position


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_clip_weighs_nothing_in_training_and_is_refused_in_evaluation(
    shards: Path, tmp_path: Path, workers: int
) -> None:
    index, position = damaged(shards, tmp_path / "damaged")
    with source(index, workers=workers) as made:
        found = {}
        for batch in made.prefetch(flat(epoch(index, 1, 0)), training=True):
            ends = batch.offsets.tolist()
            for i, clip in enumerate(batch.positions.tolist()):
                found[clip] = (int(batch.damaged[i]), float(batch.weights["emotion"][i]), ends[i + 1] - ends[i])
                if clip == position:
                    assert not batch.samples[ends[i] : ends[i + 1]].any()
        assert found.pop(position) == (CorruptionCause.CHANGED, 0.0, SILENCE)
        assert all(cause == 0 and weight == 1 + clip % 3 and samples == index.num_samples[clip]
                   for clip, (cause, weight, samples) in found.items())  # fmt: skip
        with pytest.raises(CorruptClipError, match=index.key(position)):
            list(made.prefetch(evaluation_micro_batches(everything(index), index.num_samples, BatchSpec(1, 80_000), 0)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_gone_is_no_damage(shards: Path, tmp_path: Path, workers: int) -> None:
    """The file system's trouble may pass: it ends training in words, and no clip is left out for it."""
    index = ShardIndex.load(Path(shutil.copytree(shards, tmp_path / "gone")))
    next((tmp_path / "gone").rglob("*.tar")).unlink()
    with source(index, workers=workers) as made, pytest.raises(UserError, match="cannot be read") as caught:
        list(made.prefetch(flat(epoch(index, 1, 0)), training=True))
    assert not isinstance(caught.value, CorruptClipError)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_ignore_stop_signals_and_end_with_their_parent(shards: Path, index: ShardIndex) -> None:
    """The signals that reach every process of a job leave workers at work; a kill of their parent ends them."""
    assert set(STOP_SIGNALS) <= set(IGNORED_SIGNALS)
    command = [sys.executable, "-c", HOLDS_WORKERS, str(shards)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None and holder.stdout is not None
    workers = [int(pid) for pid in holder.stdout.readline().split()]
    assert len(workers) == 2
    for pid in workers:
        for number in STOP_SIGNALS:
            os.kill(pid, number)
    print(file=holder.stdin, flush=True)
    assert holder.stdout.readline().strip() == str(len(index.metadata))
    holder.kill()
    holder.communicate()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_worker_is_told(index: ShardIndex) -> None:
    with source(index, workers=2) as made:
        batches = made.prefetch(flat(epoch(index, 1, 0) * 9), training=True)
        next(batches)
        os.kill(made._prefetch.pids[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="data worker was killed"):
            list(batches)


def test_as_many_workers_as_a_rank_can_spare_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)))
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SER_HPC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SER_HPC_START", "one")
    assert [default_workers(True, ranks) for ranks in (1, 2, 4, 8, 24)] == [8, 8, 5, 2, 1]
    assert default_workers(False, 1) == 0
    monkeypatch.setenv("SER_HPC_TRIALS_HERE", "3")
    assert default_workers(True, 2) == 3
    monkeypatch.delenv("SER_HPC_START")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert default_workers(True, 4) == 5


def test_measuring_the_data_side_changes_nothing(index: ShardIndex, expected: list[tuple[object, ...]]) -> None:
    micros = flat(epoch(index, 1, 0))
    with source(index, augment=NOISE) as made:
        speed = made.measure_throughput(micros, 0.05)
        assert speed is not None and speed > 0
        assert made.measure_throughput([], 0.05) is None
        assert [content(batch) for batch in made.prefetch(micros, training=True)] == expected


def test_a_filler_is_never_counted(index: ShardIndex) -> None:
    draws = ClipSelection(everything(index)[:2], np.array([1, 2], dtype=np.uint64))
    micros = [micro for rank in range(3) for micro in assign_to_ranks(draws, [np.array([0]), np.array([1])], rank, 3)]
    with source(index, augment=NOISE) as made:
        weights = [batch.weights["emotion"].tolist() for batch in made.prefetch(micros, training=True)]
    assert weights == [[1.0], [2.0], [0.0]]
