"""On a real Slurm: what status says of jobs that Slurm stops, cannot start, or ends before Python began."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_here import Cluster, missing

from ser_hpc.core.atomic_io import write_json
from ser_hpc.launchers.slurm.jobs import job_states
from ser_hpc.launchers.slurm.submissions import Submission, record_submission
from ser_hpc.monitor.trial_status import TrialStatus, read_status
from ser_hpc.run.run_dir import RunDir, Trial

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
TRIAL = Trial(0, 0)


@pytest.fixture
def standing(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrialStatus]:
    """`standing(job, *states)`: of a run's only trial, whose job this is, once it is in one of these states."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    run = RunDir(tmp_path / "x")
    write_json(run.plan, {"trials": [{"seed": 0, "fold": 0}]})

    def found(job: str, *states: str) -> TrialStatus:
        record_submission(run, Submission("trials", "wrap", time.time() - 1, {0: (TRIAL,)}, job=job))
        deadline = time.monotonic() + 60
        while True:
            (now,) = read_status(run, job_states(run)[0], time.time())
            if now.state in states:
                return now
            assert time.monotonic() < deadline, f"{states} awaited, it is {now}"
            time.sleep(0.3)

    return found


def test_a_suspended_job_is_told_apart_from_one_that_runs(slurm: Cluster, standing: Callable[..., TrialStatus]) -> None:
    job = slurm.sbatch("--job-name=wrap", "--output=/dev/null", "--array=0-0", "--wrap", "sleep 100")
    assert standing(job, "starting").nodes
    slurm.run("scontrol", "suspend", job)
    told = standing(job, "suspended")
    assert told.nodes and told.has_job and f"scontrol resume {job}_0" in told.reason
    slurm.run("scontrol", "resume", job)
    standing(job, "starting")


def test_why_a_job_ended_before_python_began(slurm: Cluster, standing: Callable[..., TrialStatus], tmp_path: Path) -> None:
    """Its log says it in the shell's and srun's own words; where there is none, Slurm's exit code does."""
    logs = tmp_path / "x" / "jobs" / "trials"
    logs.mkdir(parents=True)
    output = f"--output={logs}/%A_%a_0_log.out"
    for script, words in (
        ("srun --mem=1M --mem-per-cpu=1M hostname", "mutually exclusive"),
        ("srun no_such_python", "execve(): no_such_python: No such file or directory"),
        ("source /no/such/activate && srun hostname", "/no/such/activate: No such file or directory"),
        ("if true; srun hostname", "syntax error"),
        ("srun --ntasks=5000 hostname", "srun: error: Unable to create step"),
    ):
        (tmp_path / "script").write_text(f"#!/bin/bash\n{script}\n")
        told = standing(slurm.sbatch("--job-name=wrap", output, "--array=0-0", tmp_path / "script"), "failed")
        assert told.error and words in told.error.line, told
    told = standing(slurm.sbatch("--job-name=wrap", "--output=/no/such/%A_%a.out", "--array=0-0", "--wrap", "true"), "failed")
    assert ":53 (Slurm could not open its log there" in told.reason and told.reason.endswith("it has left no log")
    job = slurm.sbatch("--job-name=wrap", output, "--array=0-0", "--hold", "--wrap", "true")
    assert standing(job, "held").is_open is False
    slurm.run("scancel", job)
    assert standing(job, "stopped").reason == "cancelled before it began"
