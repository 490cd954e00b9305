"""On a real Slurm: what cannot start, or comes no further, leaves the queue and says why; a node's fault stays its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_here import Cluster
from small import newest_jobs, tones, wav2vec2
from test_faults import with_slow_steps

from ser_hpc.core.atomic_io import read_json
from ser_hpc.launchers.slurm import starts
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.shards.write import pack
from ser_hpc.status import main as status

pytestmark = pytest.mark.timeout(1800)
SMALL = ["cluster.cpus_per_gpu=1", "cluster.mem_gb_per_gpu=2", "folds.protocol=given_split", "train.global_batch=8"]
SMALL += ["train.epochs=2", "train.lr=1e-3"]
MODEL = ["model.weights=null", f"model.config={wav2vec2()}", "model.head.projection=16"]
TRIAL = Trial(0, 0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a fixed split, so that a run is one trial."""
    base = tmp_path_factory.mktemp("given-up")
    parts = {"s1": "train", "s2": "dev", "s3": "test"}
    pack([replace(u, split=parts[u.session]) for u in tones(base / "wav", 3, 4) if u.session], base / "shards", workers=1)
    return base / "shards"


def launched(slurm: Cluster, root: Path, shards: Path, *more: str) -> tuple[RunDir, str, str]:
    """Launch a trial and wait until the queue is empty; the run, the id of its job and what the jobs' logs say."""
    command = [sys.executable, "-m", "ser_hpc.launch", "--partition", "gpu", "--gpus-per-node", "1", f"run.root={root}"]
    command += [f"data.shards={shards}", *SMALL, *MODEL, *more]
    done = subprocess.run(command, env=with_slow_steps(slurm), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(next(root.glob("ser-*")))
    jobs = newest_jobs(run)
    slurm.wait(jobs, timeout_s=1500)
    assert not slurm.run("squeue", "--noheader")
    return run, f"{jobs[0]}_0", "\n".join(log.read_text() for log in sorted(run.jobs.rglob("*_log.out")))


def python(folder: Path, *lines: str) -> str:
    """A setting: the jobs' Python is a script."""
    script = folder / "python"
    script.write_text("\n".join(("#!/bin/sh", *lines, "")))
    script.chmod(0o755)
    return f"cluster.python={script}"


def test_a_container_that_is_not_there_is_given_up(
    slurm: Cluster, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a start on each node: apptainer ends with 255 where its image is missing."""
    missing = python(tmp_path, "echo 'FATAL: no image at /images/ser.sif'", "exit 255")
    run, job, logs = launched(slurm, tmp_path / "runs", shards, missing)
    assert slurm.states()[job] == "FAILED" and starts.unreached_nodes(run, job) == set(slurm.nodes)
    assert [start.outcome for start in starts.read_starts(run, job)] == ["absent"] * 3 + ["given-up"]
    assert "given up after 3 starts in a row without a new step; the last: exit code 255: FATAL: no image at" in logs
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    assert status([str(run.path)]) == 1
    assert "FATAL: no image at" in capsys.readouterr().out


@pytest.mark.faults
def test_a_node_without_python_is_left_out_and_the_trial_trains_elsewhere(slurm: Cluster, tmp_path: Path, shards: Path) -> None:
    lame = python(tmp_path, '[ "$SLURMD_NODENAME" != n1 ] || exit 127', f'exec {sys.executable} "$@"')
    run, job, logs = launched(slurm, tmp_path / "runs", shards, lame)
    trial = run.trial(TRIAL)
    assert trial.is_done and len(trial.attempts) == 1, logs
    assert starts.unreached_nodes(run, job) == {"n1"} and read_json(trial.current.attempt)["host"] != "n1"
    assert "ExcNodeList=n1 " in slurm.run("scontrol", "show", "job", "-o", job)


@pytest.mark.faults
def test_a_line_of_setup_that_fails_does_not_train(slurm: Cluster, tmp_path: Path, shards: Path) -> None:
    setup = "cluster.setup=[module load nothing]"
    run, job, logs = launched(slurm, tmp_path / "runs", shards, setup, "cluster.max_starts_without_progress=2")
    assert slurm.states()[job] == "FAILED" and not run.trial(TRIAL).attempts
    assert "module: command not found" in logs
    assert "given up after 2 starts in a row" in logs and "cluster.setup: exit code 127 of: module load nothing" in logs


@pytest.mark.faults
def test_a_time_limit_that_leaves_no_step_is_given_up(
    slurm: Cluster, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEP_SECONDS", "200")
    short = ["cluster.time_min=2", "cluster.stop_before_end_s=60", "cluster.max_starts_without_progress=2"]
    run, job, logs = launched(slurm, tmp_path / "runs", shards, *short)
    assert slurm.states()[job] in ("FAILED", "TIMEOUT") and "given up after 2 starts in a row" in logs
    assert not run.trial(TRIAL).is_done and read_end(run.trial(TRIAL).current).step in (0, None)
