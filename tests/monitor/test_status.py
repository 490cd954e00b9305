"""The status command on made-up run directories: what Slurm says is recorded from a real Slurm 22.05."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from made_run import MIN, MadeRun, queue, slurm, states, told

from ser_hpc import launch, report, status
from ser_hpc.core.atomic_io import write_json, write_text
from ser_hpc.core.errors import UserError
from ser_hpc.launchers.foreground import only_launcher
from ser_hpc.monitor import poll

BEGIN = "submitit INFO (2026-11-21 12:35:07,424) - Starting with JobEnvironment(job_id=123_4, hostname=n2, local_rank=0(2))\n"
FELLOW = """\
[rank0]: Traceback (most recent call last):
[rank0]:   File "/scratch/ser_hpc/engine/ddp.py", line 60, in step
[rank0]: torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3384, remote process exited
srun: error: n2: tasks 0-1: Exited with exit code 1
slurmstepd: error: *** STEP 123.0 ON n2 CANCELLED AT 2026-11-21T12:36:00 ***
"""
OOM = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "/scratch/ser_hpc/engine/loop.py", line 120, in train_trial
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.20 GiB. GPU 1 has a total capacity of 79.11 GiB
"""


def at_night(path: Path) -> MadeRun:
    """15 trials on a cluster in the middle of it."""
    made = MadeRun(path)
    made.submit()
    for number, (began, until) in enumerate([(190, 130), (188, 121), (180, 110)], start=1):
        made.attempt(number, began=began, until=until, state="done", end="done", step=1200, uar=0.6 + number / 100, left=None)
    made.attempt(4, began=120, until=80, end="stopped", step=300)
    made.attempt(4, began=70, node="n2", step=700, left=35 * MIN, uar=0.588)
    made.attempt(
        5, began=118, until=100, node="n2", end="failed", error="RuntimeError: NCCL error", log=[BEGIN + FELLOW, BEGIN + OOM]
    )
    made.attempt(6, began=110, until=2, step=1100, uar=0.612, left=None, end="stopped")
    made.attempt(7, began=100, until=45, node="n3", step=200, left=70 * MIN)
    made.attempt(8, began=9, node="n[1-2]", step=60, uar=None, left=88 * MIN)
    made.attempt(9, began=0.2, node="n3", state="starting", step=0, uar=None, left=None)
    return made


NIGHT = queue(
    "3 RUNNING None n2 1:10:00 1",
    "4 FAILED NonZeroExitCode n2 18:00 0",
    "5 PENDING BeginTime - 0:00 1",
    "6 RUNNING None n3 1:40:10 0",
    "7 RUNNING None n[1-2] 9:05 0",
    "8 RUNNING None n3 0:14 0",
    "9 PENDING JobHeldUser - 0:00 0",
    *(f"{element} PENDING Priority - 0:00 0" for element in range(10, 15)),
)


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeRun:
    slurm(monkeypatch, squeue=NIGHT)
    return at_night(tmp_path / "x")


def test_every_trial_has_a_row_with_its_state(night: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    code, trials = told(night, capsys)
    first = ["done", "done", "done", "running", "failed", "requeued", "lost", "running", "starting", "held"]
    assert code == 1 and [trial["state"] for trial in trials] == first + ["waiting"] * 5
    assert [trial["restarts"] for trial in trials[:7]] == [0, 0, 0, 1, 0, 1, 0]
    assert (trials[3]["nodes"], trials[3]["epoch"], trials[3]["step"]) == ("n2", 35, 700)
    assert trials[4]["error"].startswith("torch.OutOfMemoryError: CUDA out of memory")
    assert [trial["number"] for trial in trials if trial["open"]] == [5]


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_keeps_to_its_width_and_is_plain_in_a_log(
    night: MadeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert status.main([str(night.run.path)]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out and max(map(len, out.splitlines())) <= width
    words = " ".join(out.split())
    assert "15 trials: 3 done, 3 running, 1 failed, 1 requeued, 1 lost, 1 held, 5 waiting" in words
    assert "the last trial ends in about" in words and "scontrol release 123_9" in words
    assert "11-15 waiting: for jobs of higher priority (Priority)" in words


def test_epochs_are_counted_from_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one under way; of a trial that is done, early or not, how many it took."""
    made, here = MadeRun(tmp_path / "x", seeds=1), socket.gethostname()
    made.attempt(1, began=9, job=False, node=here, pid=os.getpid(), step=10)
    made.attempt(2, began=9, job=False, node=here, state="done", end="done", step=400)
    made.attempt(3, began=9, job=False, node=here, state="done", end="done", step=1200)
    assert status.main([str(made.run.path)]) == 0
    shown = capsys.readouterr().out
    assert [re.findall(r"\b\d+/60\b", line) for line in shown.splitlines() if "/60" in line] == [["1/60"], ["20/60"], ["60/60"]]


def test_without_slurm_the_trials_own_files_are_believed(
    night: MadeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may be queued is not called missing: a script that looks every hour must not cry wolf while Slurm is away."""
    slurm(monkeypatch)
    _, found = states(night, capsys)
    assert found[3:10] == ["running", "failed", "unknown", "unknown", "running", "starting", "unknown"]
    made = MadeRun(night.run.path.parent / "y")
    made.submit()
    made.attempt(1, began=20, until=10, end="stopped")
    assert states(made, capsys) == (0, ["unknown"] * 15)
    assert status.main([str(made.run.path)]) == 0
    assert "there is no squeue on this machine" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("state", "expected", "word"),
    [
        ("TIMEOUT", "failed", "time limit"),
        ("OUT_OF_MEMORY", "failed", "memory"),
        ("NODE_FAIL", "failed", "node was lost"),
        ("CANCELLED", "stopped", "cancelled"),
        ("FAILED", "failed", "exit code 0:0"),
    ],
)
def test_a_job_that_ended_without_a_word_of_its_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, state: str, expected: str, word: str
) -> None:
    """Its heartbeat may be a second old: the job is over all the same. One that went on elsewhere goes on."""
    made = MadeRun(tmp_path / "x", seeds=1)
    made.submit()
    made.attempt(1, began=20)
    made.attempt(2, began=20)
    made.attempt(2, began=1, job=False, node=socket.gethostname(), pid=os.getpid())
    slurm(monkeypatch, squeue=queue(*(f"{element} {state} None n1 20:00 0" for element in range(5))))
    code, trials = told(made, capsys)
    assert code == 1 and [trial["state"] for trial in trials] == [expected, "running", *[expected] * 3]
    assert word in trials[0]["why"]


def test_a_requeued_job_has_not_begun_before_its_new_attempt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeRun(tmp_path / "x", seeds=1)
    made.submit()
    made.attempt(1, began=50, until=10, end="stopped")
    made.attempt(2, began=50, until=0.5, end="stopped")
    made.attempt(3, began=50, until=10)
    slurm(monkeypatch, squeue=queue("0 RUNNING None n1 0:20 1", "1 RUNNING None n1 50:30 0", "2 RUNNING None n1 40:00 1"))
    assert states(made, capsys)[1][:3] == ["starting", "ending", "lost"]


def test_a_run_on_this_machine_is_told_from_its_heartbeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, here = MadeRun(tmp_path / "x", seeds=1), socket.gethostname()
    made.attempt(1, began=9, until=1, job=False, node=here, end="failed", error="ValueError: no", log=["ValueError: no\n"])
    made.attempt(2, began=9, until=1, job=False, node=here, end="stopped")
    made.attempt(3, began=9, job=False, node=here, pid=os.getpid())
    made.attempt(4, began=9, until=8, job=False, node=here, pid=2**22 + 1)
    assert states(made, capsys) == (1, ["failed", "stopped", "running", "lost", "waiting"])
    made.attempt(3, began=0, job=False, node=here, end="done")
    _, trials = told(made, capsys)
    assert trials[4]["state"] == "not started" and trials[0]["error"] == "ValueError: no"


def test_what_a_launcher_here_has_yet_to_begin_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before its first trial has begun, too; however an attempt before it ended, but not one of its own."""
    made, here = MadeRun(tmp_path / "x", seeds=1), socket.gethostname()
    for number, end in ((1, "failed"), (2, "stopped"), (3, None)):
        made.attempt(number, began=9, until=8, job=False, node=here, pid=2**22 + 1, end=end)
    before = (1, ["failed", "stopped", "lost", "not started", "not started"])
    assert states(made, capsys) == before
    with only_launcher(made.run, made.trials[:4]):
        os.utime(made.run.launcher_lock, times=(now := time.time() - MIN, now))
        assert states(made, capsys) == (1, ["waiting"] * 4 + ["not started"])
        made.attempt(1, began=0, job=False, node=here, end="failed")
        assert states(made, capsys)[1][:2] == ["failed", "waiting"]
    assert states(made, capsys) == before


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """0 while something can still come of every trial, 1 once something must be done."""
    made = MadeRun(tmp_path / "x", seeds=1)
    assert states(made, capsys) == (1, ["not started"] * 5)
    made.submit()
    slurm(monkeypatch, squeue=queue(*(f"{element} PENDING Priority - 0:00 0" for element in range(5))))
    assert states(made, capsys) == (0, ["waiting"] * 5)
    for number in range(1, 6):
        made.attempt(number, began=9, end="done")
    assert states(made, capsys) == (0, ["done"] * 5)


def test_damaged_files_of_a_killed_attempt_do_not_hide_the_run(night: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    attempt = night.run.trial(night.trials[6]).newest
    assert attempt
    attempt.progress.write_text('{"state": "trai')
    attempt.attempt.write_text("")
    attempt.end.write_text("[]")
    assert len(told(night, capsys)[1]) == 15


def test_logs_of_all_ranks(night: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([str(night.run.path), "--logs", "5"]) == 0
    out = capsys.readouterr().out
    assert "123_4_0_log.out" in out and "123_4_1_log.out" in out and "[rank1]: torch.OutOfMemoryError" in out
    for number, words in (("0", "1 to 15"), ("16", "1 to 15"), ("12", "no log yet: waiting")):
        with pytest.raises(UserError, match=words):
            status.main([str(night.run.path), "--logs", number])


def test_watching_ends_when_nothing_runs_or_waits(
    night: MadeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not because Slurm does not answer for a while. In a log: a line for each change, then the screen."""
    over = queue("4 FAILED NonZeroExitCode n2 18:00 0")
    later = iter([{"squeue": NIGHT}, {}, {"squeue": over}])
    monkeypatch.setattr(poll, "_ASK_SLURM_S", 0.0)
    watching, sleep = threading.get_ident(), time.sleep

    def pause(seconds: float) -> None:
        slurm(monkeypatch, **next(later)) if threading.get_ident() == watching else sleep(seconds)

    monkeypatch.setattr(time, "sleep", pause)
    assert status.main([str(night.run.path), "--watch"]) == 1
    out = capsys.readouterr().out
    assert out.count("15 trials: 3 done") == 4 and next(later, None) is None


def test_retry_leaves_out_the_nodes_where_it_failed_but_not_for_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def resubmit(*given: object) -> int:
        asked.append(given)
        return 0

    monkeypatch.setattr(launch, "resubmit", resubmit)
    made = MadeRun(tmp_path / "x", seeds=1)
    made.submit()
    made.attempt(1, began=9, until=8, node="n1", end="failed", error="RuntimeError: CUDA error: uncorrectable ECC error")
    made.attempt(2, began=9, until=8, node="n2", end="failed", error="UserError: the loss is not finite")
    made.attempt(3, began=9, node="n3")
    made.attempt(4, began=9, node="n[4-5]")
    slurm(
        monkeypatch, squeue=queue("2 RUNNING None n3 9:00 0", "3 NODE_FAIL None n[4-5] 9:00 0", "4 PENDING Priority - 0:00 0")
    )
    assert status.main([str(made.run.path), "--retry"]) == 0
    assert asked == [(made.run, [made.trials[0], made.trials[1], made.trials[3]], ("n1", "n[4-5]"), "refuse")]
    slurm(monkeypatch)
    with pytest.raises(UserError, match="still queued cannot be asked"):
        status.main([str(made.run.path), "--retry"])
    assert len(asked) == 1


def test_where_our_code_was_not_reached_is_left_out_too_and_what_was_given_up_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of these starts there is no attempt. What could be started nowhere (the third) is no node's fault."""
    asked: list[object] = []
    monkeypatch.setattr(launch, "resubmit", lambda *given: asked.append(given) or 0)
    made = MadeRun(tmp_path / "x", seeds=1)
    made.submit()
    made.attempt(2, began=9, until=8, node="n2", end="stopped")
    why = "given up after 3 starts in a row without a new step; the last: exit code 127: srun: no python"
    for element, lines in {
        0: ["1 n7 127 absent exit code 127: "],
        1: ["1 n8 127 absent exit code 127: ", "2 n2 75 stuck exit code 75: ", f"3 n2 75 given-up {why}"],
        2: [f"{number} n{number} 255 absent no image" for number in (3, 4, 5)] + [f"6 n5 255 given-up {why}"],
    }.items():
        write_text(made.run.jobs / f".starts-123_{element}", "\n".join([*lines, "cut o"]))
    slurm(monkeypatch, squeue=queue(*(f"{element} FAILED NonZeroExitCode n2 0:10 0" for element in range(3))))
    assert status.main([str(made.run.path)]) == 1
    shown = capsys.readouterr().out
    assert f"2-3 failed: {why}" in " ".join(shown.split())
    assert status.main([str(made.run.path), "--retry"]) == 0
    ((_, _, exclude, _),) = asked
    assert exclude == ("n2", "n7", "n8")


def test_cancelling_says_what_it_did_and_what_it_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeRun(tmp_path / "x", seeds=1)
    assert status.main([str(made.run.path), "--cancel"]) == 0
    assert "Nothing of this run is queued or running" in capsys.readouterr().out
    made.submit()
    made.attempt(1, began=9, job=False, node=socket.gethostname(), pid=os.getpid())
    answer = queue("1 RUNNING None n3 9:00 0").replace("|0|ser-x|", f"|{os.getuid()}|ser-x|")
    asked = slurm(monkeypatch, squeue=answer, sacct="", scancel="")
    assert status.main([str(made.run.path), "--cancel"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "asked to cancel 123." in out and f"`kill -INT {os.getpid()}`" in out and ("scancel", "123") in asked


def test_what_is_no_run_is_a_mistake(tmp_path: Path) -> None:
    """Packed shards have a plan.json as well."""
    with pytest.raises(UserError, match="not a run directory"):
        status.main([str(tmp_path)])
    for command in (status.main, report.main):
        for plan, words in (
            ({"version": 1, "shards": []}, "packed shards: see python -m ser_hpc.inspect"),
            ([], "plans no trials"),
        ):
            write_json(tmp_path / "plan.json", plan)
            with pytest.raises(UserError, match=words):
                command([str(tmp_path)])


def test_status_needs_no_torch() -> None:
    modules = "ser_hpc.status, ser_hpc.monitor.status_screen, ser_hpc.launchers.slurm.jobs"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
