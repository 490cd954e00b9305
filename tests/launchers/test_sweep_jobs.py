"""A sweep on a real Slurm: its jobs ask for themselves, and whichever of them is killed, all is tried once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from slurm_here import Cluster, missing
from small import packed_tones, wav2vec2

from ser_hpc.run.sweep_dir import SweepDir

pytestmark = [pytest.mark.skipif(missing() is not None, reason=str(missing())), pytest.mark.timeout(3600), pytest.mark.faults]


def until(what: Callable[[], object], seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(1)


def test_two_of_its_jobs_are_killed_and_nothing_is_lost_or_doubled(slurm: Cluster, tmp_path: Path) -> None:
    """One by the kernel, which Slurm starts again; one by its user, for good: the others take up what it had begun."""
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump(
            {"method": "random", "configurations": 12, "settings": {"train.lr": {"min": 1e-4, "max": 1e-1, "scale": "log"}}}
        )
    )
    given = [
        f"run.root={tmp_path / 'runs'}", f"data.shards={packed_tones(tmp_path)}", "model.weights=null",
        f"model.config={wav2vec2()}", "model.head.projection=8", "model.freeze=encoder", "train.epochs=1",
        "train.global_batch=16", "cluster.cpus_per_gpu=1", "cluster.mem_gb_per_gpu=2",
    ]  # fmt: skip
    command = [sys.executable, "-m", "ser_hpc.sweep", str(tmp_path / "sweep.yaml"), "--folds", "4", "--parallel", "3", *given]
    environment = os.environ | {"SLURM_CONF": slurm.env["SLURM_CONF"]}
    submitted = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "Submitted 3 jobs" in submitted.stdout
    (path,) = (tmp_path / "runs" / "sweeps").iterdir()
    sweep = SweepDir(path)
    twice = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "3 jobs queued or running already" in twice.stdout and "Submitted" not in twice.stdout

    until(lambda: len(sweep.configurations()) > 3)
    os.kill(worker(path, 0), signal.SIGKILL)
    (array,) = {job.split("_")[0] for job in slurm.run("squeue", "--noheader", "--array", "--format=%i").split()}
    slurm.run("scancel", f"{array}_1")
    until(lambda: not slurm.run("squeue", "--noheader", "--array", "--format=%i").split())

    table = json.loads(sweep.table_json.read_text())
    assert table["counts"] == {"done": 12} and [c.number for c in sweep.configurations()] == list(range(12))
    assert len({row["run"] for row in table["configurations"]}) == 12
    done = sorted((tmp_path / "runs").glob("*/seed_0/fold_*/done.json"))
    assert len(done) == 48
    assert [path.parent.name for path in (tmp_path / "runs").glob("*/report.json")] == [table["chosen"]]


def worker(sweep: Path, element: int) -> int:
    """The process of an element of the array that asks for configurations."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            environment = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        works = words[1:5] == [b"-u", b"-m", b"ser_hpc.sweep", b"--work"] and str(sweep).encode() in words
        if works and f"SLURM_ARRAY_TASK_ID={element}".encode() in environment:
            return int(place.name)
    raise AssertionError(f"element {element} does not work on {sweep}")
