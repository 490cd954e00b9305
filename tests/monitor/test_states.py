"""What a trial's state is called: by what Slurm says of its newest job, and by whose attempt the newest one is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from made_run import MadeRun, queue, slurm, states, told

from ser_hpc import status
from ser_hpc.core.atomic_io import write_text
from ser_hpc.launchers.slurm.submissions import Submission, record_submission


@pytest.fixture
def again(tmp_path: Path) -> MadeRun:
    """Five trials of which the first three have an attempt of job 123; 100 minutes later all were submitted as job 124."""
    made = MadeRun(tmp_path / "x", seeds=1)
    made.submit(ago=200)
    made.attempt(1, began=180, until=150, end="stopped")
    made.attempt(2, began=180, until=150, end="failed", error="ValueError: before")
    made.attempt(3, began=180, until=150)
    made.submit("124", ago=100)
    return made


def test_a_first_start_is_not_called_requeued(
    again: MadeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what this very job has begun before, or Slurm has counted a restart of."""
    again.attempt(5, began=50, until=40, end="stopped", array="124")
    slurm(
        monkeypatch,
        squeue=queue(
            "124_0 PENDING Priority - 0:00 0",
            "124_1 PENDING Resources - 0:00 0",
            "124_2 PENDING Resources - 0:00 1",
            "124_3 PENDING Resources - 0:00 1",
            "124_4 PENDING BeginTime - 0:00 0",
        ),
        sacct="",
    )
    code, trials = told(again, capsys)
    assert code == 0 and [trial["state"] for trial in trials] == ["waiting", "waiting", "requeued", "requeued", "requeued"]
    assert trials[0]["why"].startswith("again, after attempt 1 (stopped, its state is saved), for jobs of higher priority")
    assert trials[1]["why"].startswith("again, after attempt 1 (failed), for free nodes") and trials[1]["error"] is None
    assert trials[3]["why"].startswith("before an attempt began; waits for free nodes")


def test_the_newest_job_is_told_even_if_it_ended_before_an_attempt_began(
    again: MadeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not how an earlier job of the trial ended; and why, from its own log, or that it has none."""
    fatal = "srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually exclusive."
    no_python = "slurmstepd: error: execve(): python: No such file or directory"
    aftermath = "srun: error: n1: task 0: Exited with exit code 2"
    write_text(again.run.jobs / "trials" / "124_1_0_log.out", f"{fatal}\n")
    write_text(again.run.jobs / "trials" / "124_3_0_log.out", f"{aftermath}\n{no_python}\n")
    slurm(
        monkeypatch,
        squeue=queue(
            "124_0 CANCELLED None - 0:00 0",
            "124_1 FAILED NonZeroExitCode n2 0:02 0 256",
            "124_2 FAILED RaisedSignal:53(Real-time_signal_19) n1 0:00 0 53",
            "124_3 FAILED NonZeroExitCode n1 0:02 0 512",
            "124_4 CANCELLED None - 0:00 0",
        ),
    )
    code, trials = told(again, capsys)
    assert code == 1 and [trial["state"] for trial in trials] == ["stopped", "failed", "failed", "failed", "stopped"]
    assert trials[0]["why"] == trials[4]["why"] == "cancelled before it began"
    assert (trials[1]["error"], trials[1]["nodes"]) == (fatal, "n2")
    assert "could not open its log" in trials[2]["why"] and trials[2]["why"].endswith("it has left no log")
    assert trials[3]["error"] == no_python and trials[3]["nodes"] == "n1"
    assert status.main([str(again.run.path), "--logs", "2"]) == 0 and fatal in capsys.readouterr().out


def test_while_slurm_is_away_an_earlier_jobs_end_is_not_the_trials(
    again: MadeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(monkeypatch)
    assert states(again, capsys) == (0, ["unknown"] * 5)


@pytest.mark.parametrize("restarts", [0, 1])
def test_what_is_suspended_neither_runs_nor_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, restarts: int
) -> None:
    """Slurm's running time stands still with it. Once it goes on, what it was silent for counts anew."""
    made = MadeRun(tmp_path / "x", seeds=1)
    made.submit()
    for number in range(1, 6):
        made.attempt(number, began=180, until=150, restart=restarts)
    slurm(
        monkeypatch,
        squeue=queue(
            f"0 SUSPENDED None n1 31:00 {restarts}",
            f"1 STOPPED None n1 31:00 {restarts}",
            f"2 RUNNING None n1 31:00 {restarts}",  # goes on since a moment ago
            f"3 RUNNING None n1 1:40:00 {restarts}",  # for more than the limit
            f"4 RUNNING None n1 3:01:00 {restarts}",  # was never suspended
        ),
    )
    code, trials = told(made, capsys)
    assert code == 0 and [trial["state"] for trial in trials] == ["suspended", "suspended", "running", "lost", "lost"]
    assert "scontrol resume 123_0" in trials[0]["why"] and "scancel --signal=CONT 123_1" in trials[1]["why"]
    assert trials[0]["nodes"] == "n1" and trials[0]["seconds_left"] is None


def test_a_restart_is_known_by_its_count_whatever_the_clocks_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeRun(tmp_path / "x", seeds=1)
    made.submit()
    made.attempt(1, began=2, until=1, restart=0)
    made.attempt(2, began=30, restart=1)
    slurm(monkeypatch, squeue=queue("0 RUNNING None n1 1:30 1", "1 RUNNING None n1 0:20 1"))
    assert states(made, capsys)[1][:2] == ["starting", "running"]


@pytest.mark.parametrize(
    ("status_of_it", "words"),
    [
        ("53", "0:53 (Slurm could not open its log"),
        (str(15 * 256 + 53), ":53 (Slurm could not open its log"),  # as squeue of a real Slurm 22.05 writes it
        (str(127 * 256), "127:0 (a command of its script was not found"),
        (str(126 * 256), "126:0 (a command of its script may not be executed"),
        ("9", "0:9 (killed, SIGKILL"),
        (str(137 * 256), "137:0 (killed, SIGKILL"),
        ("11", "0:11 (segmentation fault)"),
        (str(1 * 256), "1:0; it has left no log"),
    ],
)
def test_exit_codes_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, status_of_it: str, words: str
) -> None:
    made = MadeRun(tmp_path / "x", seeds=1)
    made.submit()
    slurm(monkeypatch, squeue=queue(f"0 FAILED NonZeroExitCode n1 0:01 0 {status_of_it}"), sacct="")
    assert words in told(made, capsys)[1][0]["why"]


def test_what_waits_for_others_of_its_job_is_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five trials of one job, one after another: it has run for longer than a trial may be silent."""
    made = MadeRun(tmp_path / "x", seeds=1)
    elements = {0: tuple(made.trials)}
    record_submission(made.run, Submission("trials", "ser-x", time.time() - 7200, elements, job="123", user=0))
    made.attempt(1, began=90, until=50, end="done", job=False)
    made.attempt(2, began=50, job=False)
    slurm(monkeypatch, squeue=queue("0 RUNNING None n1 1:40:00 0"))
    code, trials = told(made, capsys)
    assert code == 0 and [trial["state"] for trial in trials] == ["done", "running", "waiting", "waiting", "waiting"]
    assert trials[2]["why"] == "for other trials of its job" and trials[2]["error"] is None
