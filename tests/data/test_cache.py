"""Clips kept in memory are the clips that were read: same bits, read once, never more than asked for, never a damaged one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small import packed_tones

from ser_hpc.config.load import load_settings
from ser_hpc.config.schema import identity
from ser_hpc.data.batches import BatchSource
from ser_hpc.data.cache import available_memory_bytes
from ser_hpc.data.sampler import BatchSpec, epoch_steps, step_micro_batches
from ser_hpc.shards.index import ShardIndex

EVERYTHING = 1 << 30
GB = 1 << 30


@pytest.fixture
def index(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return ShardIndex.load(Path(shutil.copytree(packed_tones(tmp_path_factory.getbasetemp()), tmp_path / "shards")))


def source(index: ShardIndex, keep_bytes: int, **options: int) -> BatchSource:
    count = len(index.metadata)
    return BatchSource(index, np.zeros(count, dtype=np.int64), np.ones(count), keep_bytes=keep_bytes, **options)


def clips(made: BatchSource, index: ShardIndex, epoch: int) -> Iterator[tuple[int, int, bytes]]:
    """Position, cause of damage and sound of each clip of an epoch, in its order."""
    steps = epoch_steps(np.arange(len(index.metadata)), 0, epoch, 20)
    micros = [micro for step in step_micro_batches(steps, index.num_samples, BatchSpec(1, 80_000), 0) for micro in step]
    for batch in made.prefetch(micros, training=True):
        ends = batch.offsets.tolist()
        for i, position in enumerate(batch.positions.tolist()):
            yield position, int(batch.damaged[i]), bytes(batch.samples[ends[i] : ends[i + 1]].numpy())


def blank(index: ShardIndex) -> dict[Path, bytes]:
    """Empty every tar under whoever has it open; returns what was in them."""
    before = {}
    for shard in index.shards:
        tar = index.roots[0] / shard.path
        assert isinstance(tar, Path)
        before[tar] = tar.read_bytes()
        tar.write_bytes(b"")
    return before


@pytest.mark.parametrize("window_bytes", [0, 200_000])
def test_the_second_epoch_reads_nothing_and_changes_no_bit(index: ShardIndex, window_bytes: int) -> None:
    with source(index, 0) as plain:
        expected = [list(clips(plain, index, epoch)) for epoch in range(3)]
    with source(index, EVERYTHING, window_bytes=window_bytes) as made:
        assert list(clips(made, index, 0)) == expected[0]
        blank(index)
        assert [list(clips(made, index, epoch)) for epoch in (1, 2)] == expected[1:]


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_no_more_is_kept_than_there_is_room_for(index: ShardIndex, part: float) -> None:
    sizes = 2 * index.num_samples
    room = int(sizes.sum() * part)
    with source(index, room) as made:
        list(clips(made, index, 0))
        blank(index)
        kept = [position for position, cause, _ in clips(made, index, 1) if not cause]
    assert room - sizes.max() < sizes[kept].sum() <= room


def test_processes_keep_nothing(index: ShardIndex) -> None:
    """Each of them would keep it all."""
    with source(index, EVERYTHING, workers=1) as made:
        list(clips(made, index, 0))
        blank(index)
        assert all(cause for _, cause, _ in clips(made, index, 1))


def test_a_damaged_clip_is_read_again(index: ShardIndex) -> None:
    before = blank(index)
    with source(index, EVERYTHING) as made:
        assert all(cause for _, cause, _ in clips(made, index, 0))
        for tar, content in before.items():
            tar.write_bytes(content)
        assert not any(cause for _, cause, _ in clips(made, index, 1))


def test_keeping_is_no_part_of_what_an_experiment_is() -> None:
    assert identity(load_settings(None, ["data.cache_gb=1"])) == identity(load_settings(None, []))


@pytest.mark.parametrize(
    ("groups", "limits", "env", "expected"),
    [
        ("", {}, {}, 64 * GB),
        ("0::/job/step", {"job/memory.max": 8 * GB, "job/step/memory.max": "max"}, {}, 8 * GB),
        ("0::/", {"memory.max": 16 * GB}, {"SLURM_MEM_PER_NODE": "0"}, 16 * GB),
        ("9:cpu,memory:/slurm/job_1\n3:cpu:/x", {"memory/slurm/job_1/memory.limit_in_bytes": 4 * GB}, {}, 4 * GB),
        ("9:memory:/elsewhere", {"memory/memory.limit_in_bytes": 2**63 - 4096}, {}, 64 * GB),
        ("0::/job", {"job/memory.max": 8 * GB}, {"SLURM_MEM_PER_NODE": "2048"}, 2 * GB),
        ("0::/job", {"job/memory.max": 900 * GB}, {}, 64 * GB),
    ],
)
def test_memory_is_what_machine_job_and_groups_all_allow(
    tmp_path: Path, groups: str, limits: dict[str, object], env: dict[str, str], expected: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemFree: 1 kB\nMemAvailable:   {64 << 20} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, limit in limits.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    assert available_memory_bytes(env, tmp_path) == expected
