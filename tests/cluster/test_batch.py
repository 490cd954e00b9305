"""The batch script's last words: which jobs are started again. A real bash; Slurm's commands are stand-ins that note calls."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ser_hpc.cluster.batch import start_again

Ran = tuple[int, str, str]
ELEMENT = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}


def run(
    folder: Path, code: int, state: str | None, last: str = ":", end: str = "2026-11-21T12:00:00", **environment: str
) -> Ran:
    """A batch script whose ranks end with `code`, of a job in `state`; its exit code, output and the calls of scontrol.

    `last`: a line of shell before the ranks end, for the last word of one of them.
    """
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("date", "seq", "grep", "head", "sleep", "cat", "rm", "wc"):
        if not (tools / name).exists():
            (tools / name).symlink_to(f"/usr/bin/{name}")
    write(tools / "squeue", f"echo {end}")
    if state is not None:
        write(tools / "scontrol", f'echo "$@" >> {folder}/calls\n[ "$1" != show ] || echo "JobId=9 {state} Dependency=(null)"')
    script = folder / "job.sh"
    write(script, f"{start_again(120, folder)}\n{last}\necho stop at $SER_HPC_STOP_TIME\n(exit {code})")
    done = subprocess.run(["/bin/bash", script], env={"PATH": str(tools)} | environment, capture_output=True, text=True)
    calls = folder / "calls"
    return done.returncode, done.stdout, calls.read_text() if calls.exists() else ""


def write(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("code", [75, 1, 137, 143, 139])
def test_what_asks_for_another_start_gets_it(tmp_path: Path, code: int) -> None:
    """Stopped, failed or killed: the array element goes back into the queue, not the array; the code stays visible."""
    returned, said, calls = run(tmp_path, code, "JobState=RUNNING Reason=None", **ELEMENT)
    assert calls.splitlines()[-1] == "requeue 7_3" and returned == code and "started again" in said


@pytest.mark.parametrize("code", [0, 2, 3])
def test_what_is_final_stays_final(tmp_path: Path, code: int) -> None:
    """Done, a mistake, superseded."""
    returned, _, calls = run(tmp_path, code, "JobState=RUNNING Reason=None", **ELEMENT)
    assert "requeue" not in calls and returned == code


def test_what_is_cancelled_stays_cancelled(tmp_path: Path) -> None:
    """Its ranks end with 75 as well; and what Slurm itself requeues (preempted, node lost) looks like this, too."""
    assert "requeue" not in run(tmp_path, 75, "JobState=COMPLETING Reason=None", **ELEMENT)[2]


def test_what_ran_into_the_time_limit_is_started_again(tmp_path: Path) -> None:
    """Its ranks did not manage to stop in time; bash's own code is then no help."""
    assert "requeue 7_3" in run(tmp_path, 0, "JobState=COMPLETING Reason=TimeLimit", **ELEMENT)[2]


def test_a_job_that_is_no_array(tmp_path: Path) -> None:
    assert "requeue 9" in run(tmp_path, 75, "JobState=RUNNING Reason=None", SLURM_JOB_ID="9")[2].splitlines()


def test_without_scontrol_it_says_what_to_do(tmp_path: Path) -> None:
    returned, said, _ = run(tmp_path, 75, None, **ELEMENT)
    assert returned == 75 and "no scontrol here: submit again to go on" in said


def test_ranks_are_told_when_to_stop(tmp_path: Path) -> None:
    """Half of the time between signal and end is left to them; Slurm's own word on the end comes before squeue's."""
    told = ELEMENT | {"SLURM_JOB_END_TIME": "1000000", "TZ": "UTC"}
    assert "stop at 999940" in run(tmp_path, 0, "JobState=RUNNING", **told)[1]


def test_without_that_word_squeue_is_asked(tmp_path: Path) -> None:
    told = ELEMENT | {"TZ": "UTC"}
    expected = int(subprocess.check_output(["date", "-d", "2026-11-21T12:00:00", "+%s"], env=os.environ | {"TZ": "UTC"})) - 60
    assert f"stop at {expected}" in run(tmp_path, 0, "JobState=RUNNING", **told)[1]


def test_a_ranks_last_word_counts_more_than_the_signal_that_ended_the_others(tmp_path: Path) -> None:
    """srun says 137 when one of several ranks gives up for good and the others are killed."""
    returned, _, calls = run(tmp_path, 137, "JobState=RUNNING Reason=None", 'echo 2 > "$SER_HPC_FINAL"', **ELEMENT)
    assert returned == 2 and "requeue" not in calls
    assert not list(tmp_path.glob(".final-*"))


def test_what_fails_at_once_again_and_again_is_given_up(tmp_path: Path) -> None:
    """A Python that is not there: no attempt begins, so none is counted."""
    for start in range(4):
        returned, said, calls = run(tmp_path, 127, "JobState=RUNNING Reason=None", **ELEMENT)
        assert returned == 127 and calls.count("requeue") == min(start + 1, 3)
        assert ("not tried any more" in said) == (start == 3)


@pytest.mark.parametrize("between", [137, 143, 75])
def test_kills_at_once_are_not_given_up(tmp_path: Path, between: int) -> None:
    """Nor does a failure count that came before one: only failures in a row."""
    for code in [127, 127, 127, between, 127, *[between] * 6]:
        _, said, calls = run(tmp_path, code, "JobState=RUNNING Reason=None", **ELEMENT)
    assert calls.count("requeue") == 11 and "not tried any more" not in said


def test_without_any_word_on_the_end_there_is_no_stop_time(tmp_path: Path) -> None:
    """An empty date is today's midnight to `date`: every start would stop after one step."""
    for answer in ("NONE", ""):
        folder = tmp_path / f"with-{answer or 'nothing'}"
        folder.mkdir()
        assert "stop at\n" in run(folder, 0, "JobState=RUNNING", end=answer, **ELEMENT)[1]
