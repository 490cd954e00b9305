"""A process's share of the cores, and the threads that it takes, whoever started it and whatever bounds it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.core import cores
from ser_hpc.launchers import detect

PACKAGE = Path(cores.__file__).parent
JOB = {"SLURM_JOB_ID": "7"}


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 cores, and no variables that say less."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(cores, "cpu_quota", lambda *_: None)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SER_HPC_", "OMP_"))]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("env", "local_size", "expected"),
    [
        ({}, 1, 64),
        ({"SLURM_CPUS_PER_TASK": "4"}, 1, 64),  # there is no job
        (JOB | {"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "8"}, 2, 4),
        (JOB | {"SLURM_CPUS_PER_TASK": "16", "SLURM_CPUS_ON_NODE": "8"}, 1, 8),  # left over from an outer job
        (JOB | {"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, 2, 4),
        (JOB | {"SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "4,1"}, 4, 2),
        (JOB | {"SLURM_CPUS_ON_NODE": "8"}, 1, 8),
        (JOB | {"SLURM_CPUS_ON_NODE": "1", "SLURM_TASKS_PER_NODE": "2"}, 2, 1),
        # torchrun's ranks, and ours, share a task
        (JOB | {"SLURM_CPUS_PER_TASK": "8", "TORCHELASTIC_RUN_ID": "x"}, 2, 4),
        (JOB | {"SLURM_CPUS_PER_TASK": "8", "SER_HPC_START": "x", "SER_HPC_TRIALS_HERE": "2"}, 2, 2),
        ({"SER_HPC_START": "x", "SER_HPC_TRIALS_HERE": "4"}, 1, 16),
    ],
)
def test_a_ranks_share(env: dict[str, str], local_size: int, expected: int) -> None:
    assert cores.rank_share(env, local_size).cores == expected


def test_a_quota_is_shared_by_the_ranks_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda *_: 5.5)
    assert cores.rank_share({}, 1) == cores.Share(5, "a CPU quota of 5.5 cores")
    assert cores.rank_share(JOB | {"SLURM_CPUS_PER_TASK": "4"}, 2).cores == 2
    assert cores.rank_share(JOB | {"SLURM_CPUS_PER_TASK": "2"}, 2).cores == 2


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, 2.5),
        ("0::/not/here\n", {"cpu.max": "400000 100000"}, 4.0),
        ("0::/a\n", {"cpu.max": "max 100000"}, None),
        (
            "5:cpu,cpuacct:/job\n1:name=systemd:/x\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "150000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            1.5,
        ),
        ("5:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("5:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quota_of_a_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], expected: float | None
) -> None:
    monkeypatch.undo()
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert cores.cpu_quota(tmp_path / "own", tmp_path / "cgroup") == expected


def test_what_the_user_set_stands_and_is_told() -> None:
    env = {"OMP_NUM_THREADS": "3"}
    assert cores.limit_threads(env, cores.Share(8, "a reason")) == "3 threads: OMP_NUM_THREADS is set"
    assert env == {"OMP_NUM_THREADS": "3"}


def test_a_share_is_told_where_it_is_less_than_the_machine() -> None:
    env: dict[str, str] = {}
    assert cores.limit_threads(env, cores.Share(1, "SLURM_CPUS_PER_TASK")) == "1 thread: SLURM_CPUS_PER_TASK"
    assert env == {"OMP_NUM_THREADS": "1"}
    assert cores.limit_threads({}, cores.Share(64, "the cores")) is None


def test_trials_on_this_machine_share_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """As several trials in a job do; every rank gets as many threads as a job of its own with that share would give it."""
    monkeypatch.setattr(detect, "_gpus", lambda: ())
    for name, value in (JOB | {"SLURM_CPUS_PER_TASK": "8"}).items():
        monkeypatch.setenv(name, value)
    found = detect.describe_machine(ClusterSettings(gpus_per_node=2), num_trials=2)
    assert (found.cores, found.threads) == (8, 2)
    assert found.description() == "2 trials at a time, 2 CPU ranks each, 2 threads each (SLURM_CPUS_PER_TASK)"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert detect.describe_machine(ClusterSettings(gpus_per_node=2), num_trials=2).threads == 1


def test_folds_have_the_cores_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU trials run side by side, a rank each; where there are more cores than folds, each has several threads."""
    monkeypatch.setattr(detect, "_gpus", lambda: ())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for have, slots, threads in ((16, 5, 3), (2, 2, 1), (1, 1, 1)):
        monkeypatch.setattr(cores, "process_share", lambda env, have=have: cores.Share(have, "the cores"))
        found = detect.describe_machine(ClusterSettings(), num_folds=5)
        assert (found.slots, found.ranks, found.threads) == (slots, 1, threads)


def test_libraries_go_by_it() -> None:
    """torch and Arrow, each as it says itself; they read one variable, before they are loaded."""
    code = """
import os
from ser_hpc.core import cores
cores.limit_threads(os.environ, cores.Share(1, ""))
import pyarrow, torch
print(torch.get_num_threads(), pyarrow.cpu_count())
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "SER_HPC_"))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_nobody_else_counts_cores() -> None:
    """One function, everywhere alike."""
    counts = re.compile(r"sched_getaffinity|cpu_count|set_num_threads")
    found = [path.name for path in PACKAGE.rglob("*.py") if counts.search(path.read_text(encoding="utf-8"))]
    assert found == ["cores.py"]
