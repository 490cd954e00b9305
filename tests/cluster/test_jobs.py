"""What was submitted is never forgotten, what is queued is never submitted again, and nobody else's job is cancelled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ser_hpc.cluster import jobs, queries, slurm_queue
from ser_hpc.cluster.jobs import Submission
from ser_hpc.cluster.slurm_queue import FORGOTTEN, UNKNOWN, SlurmError
from ser_hpc.errors import UserError
from ser_hpc.files import write_json
from ser_hpc.results.run_dir import RunDir, Trial

A, B, C, D = (Trial(0, fold) for fold in range(4))
UID = os.getuid()
DOWN = SlurmError("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of four trials, submitted as elements 0 to 3 of array 7, report 8."""
    run = RunDir(tmp_path / "emodb-1a2b3c4d")
    write_json(run.plan, {"trials": [{"seed": t.seed, "fold": t.fold} for t in (A, B, C, D)]})
    submit(run, "7", [A, B, C, D])
    return run


def submit(run: RunDir, array: str, trials: Sequence[Trial]) -> None:
    jobs.record(run, Submission(array, str(int(array) + 1), 1e9, tuple((trial,) for trial in trials)))


def answers(monkeypatch: pytest.MonkeyPatch, **said: str | SlurmError) -> list[tuple[str, ...]]:
    """Let Slurm's commands say this; returns what they are asked."""
    asked = []

    def answer(*command: str) -> str:
        asked.append(command)
        words = said.get(command[0], SlurmError(f"there is no {command[0]} on this machine"))
        if isinstance(words, SlurmError):
            raise words
        return words.replace("|", "\x1f")

    for module in (jobs, slurm_queue):
        monkeypatch.setattr(module, "ask_slurm", answer)
    return asked


def row(job: str, state: str, reason: str = "None", nodes: str = "", name: str = "ser-emodb-1a2b3c4d", user: int = UID) -> str:
    """A line of squeue."""
    return f"{job}|{user}|{name}|{state}|{reason}|{nodes}|0:00|4:00:00|0|0|\n"


def test_submissions_survive_a_kill_at_any_byte_of_the_next_one(run: RunDir) -> None:
    before = run.submitted.read_bytes()
    second = Submission("17", None, 2e9, ((A, B), (C,)))
    jobs.record(run, second)
    whole = run.submitted.read_bytes()
    first = jobs.submissions(run)[0]
    assert jobs.submissions(run) == (first, second)
    for cut in range(len(before), len(whole) - 1):
        run.submitted.write_bytes(whole[:cut])
        assert jobs.submissions(run)[0] == first
        jobs.record(run, second)
        assert [jobs.submissions(run)[0], jobs.submissions(run)[-1]] == [first, second]


# Recorded from Slurm 22.05.8: an array of which element 2 had requeued itself and elements 4 to 7 were cancelled.
SQUEUE = """\
7_7|0|ser-emodb-1a2b3c4d|CANCELLED|JobArrayTaskLimit||0:00|1:00|0|0|
7_4|0|ser-emodb-1a2b3c4d|CANCELLED|None|n2|0:32|0:28|0|15|
7_2|0|ser-emodb-1a2b3c4d|RUNNING|None|n2|0:26|0:34|1|0|
7_0|0|ser-emodb-1a2b3c4d|FAILED|NonZeroExitCode|n1|0:00|1:00|0|768|
7_3|0|ser-emodb-1a2b3c4d|TIMEOUT|TimeLimit|n2|1:12|INVALID|0|15|
8|0|report-emodb-1a2b3c4d|PENDING|Dependency||0:00|UNLIMITED|0|0|
"""
SACCT = """\
7_0|0|ser-emodb-1a2b3c4d|FAILED|n1|00:00:00|3:0
7_1|0|ser-emodb-1a2b3c4d|CANCELLED by 1000|n1|1-00:05:01|0:0
7_[2-3%2]|0|ser-emodb-1a2b3c4d|CANCELLED by 1000|None assigned|00:00:00|0:0
"""


def test_squeue_tells_what_it_knows_and_sacct_the_rest(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, squeue=SQUEUE, sacct=SACCT)
    states, notes = jobs.job_states(run)
    assert not notes and [command[0] for command in asked] == ["squeue", "sacct"]
    assert (states[A].state, states[A].nodes, states[A].exit_code) == ("FAILED", "n1", "3:0")
    assert (states[B].state, states[B].elapsed_s, states[B].is_active) == ("CANCELLED", 86701.0, False)
    assert (states[C].nodes, states[C].elapsed_s, states[C].left_s, states[C].restarts) == ("n2", 26.0, 34.0, 1)
    assert (states[D].state, states[D].left_s, states[D].exit_code) == ("TIMEOUT", None, "0:15")


@pytest.mark.parametrize("name", ["7_[0-3]", "7_[0-3%2]", "7"])
def test_elements_that_never_started_are_one_row_of_accounting(run: RunDir, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    answers(monkeypatch, squeue="", sacct=SACCT.splitlines()[2].replace("7_[2-3%2]", name) + "\n")
    states, _ = jobs.job_states(run)
    assert {states[trial].state for trial in (A, B, C, D)} == {"CANCELLED"}


def test_fields_may_hold_commas_and_blanks(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with several clusters Slurm prints lines that are no rows."""
    reason = "ReqNodeNotAvail, UnavailableNodes:n[1-2],n9"
    answers(monkeypatch, squeue="CLUSTER: ice\n" + row("7_0", "PENDING", reason) + row("7_1", "RUNNING", nodes="n[1-2,7]"))
    states = jobs.active(run)
    assert states[A].reason == reason and states[A].nodes == "" and states[B].nodes == "n[1-2,7]"


@pytest.mark.parametrize(
    "state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "REQUEUE_HOLD", "A_LATER_SLURMS"]
)
def test_whatever_has_not_ended_is_active(run: RunDir, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    answers(monkeypatch, squeue=row("7_0", state) + row("7_1", "FAILED") + row("7_2", "TIMEOUT", "TimeLimit"))
    assert set(jobs.active(run)) == {A}


def test_an_older_job_that_is_queued_hides_behind_no_newer_one(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(run, "20", [A, B])
    answers(monkeypatch, squeue=row("7_0", "PENDING") + row("20_0", "FAILED") + row("7_1", "FAILED") + row("20_1", "TIMEOUT"))
    states, _ = jobs.job_states(run)
    assert states[A].job == "7_0" and set(jobs.active(run)) == {A}
    assert states[B].job == "20_1"


def test_a_submission_of_one_trial_is_no_array(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit makes a plain job of it, whose attempts name it without an element."""
    submit(run, "30", [C])
    write_json(run.trial(C).claim().attempt, {"job": "30"})
    answers(monkeypatch, squeue=row("30", "RUNNING", nodes="n1"))
    assert {trial: job.job for trial, job in jobs.active(run).items()} == {C: "30"}
    states, _ = jobs.job_states(run)
    assert states[C].state == "RUNNING"


def test_an_element_may_run_several_trials(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.record(run, Submission("40", None, 2e9, ((A, B), (C, D))))
    answers(monkeypatch, squeue=row("40_1", "RUNNING"))
    assert set(jobs.active(run)) == {C, D}


def test_jobs_that_no_launcher_recorded_are_known_from_their_attempts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `sbatch slurm/train.sbatch`; an older attempt's job too may still be queued."""
    for job in ("90_2", "91_2"):
        write_json(run.trial(C).claim().attempt, {"job": job})
    answers(monkeypatch, squeue=row("90_2", "PENDING", name="ser"))
    assert {trial: job.job for trial, job in jobs.active(run).items()} == {C: "90_2"}


@pytest.mark.parametrize("squeue", [DOWN, SlurmError("there is no squeue on this machine")])
def test_without_an_answer_nothing_may_be_submitted_but_status_goes_on(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, squeue: SlurmError
) -> None:
    answers(monkeypatch, squeue=squeue)
    with pytest.raises(UserError, match="Nothing was submitted"):
        jobs.active(run)
    states, notes = jobs.job_states(run)
    assert len(notes) == 1 and str(squeue) in notes[0]
    assert {states[trial].state for trial in (A, B, C, D)} == {UNKNOWN}


def test_a_controller_that_is_down_leaves_accounting(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, squeue=DOWN, sacct="".join(SACCT.splitlines(keepends=True)[:2]))
    states, notes = jobs.job_states(run)
    assert states[A].exit_code == "3:0" and states[C].state == UNKNOWN and len(notes) == 1


def test_without_accounting_a_job_that_left_the_queue_is_no_longer_active(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """squeue says so even of one job alone, which it calls invalid then."""
    gone = SlurmError("slurm_load_jobs error: Invalid job id specified")
    answers(monkeypatch, squeue=gone, sacct=SlurmError("Slurm accounting storage is disabled"))
    states, notes = jobs.job_states(run)
    assert states[A].state == FORGOTTEN and not states[A].is_active and "accounting storage is disabled" in notes[0]
    assert jobs.active(run) == {}


def test_a_run_that_was_never_submitted_needs_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "local")
    write_json(run.plan, {"trials": [{"seed": 0, "fold": 0}]})
    write_json(run.trial(A).claim().attempt, {"job": None})
    asked = answers(monkeypatch)
    assert jobs.active(run) == {} and jobs.job_states(run) == ({}, ()) and jobs.cancel(run) == () and not asked


def test_a_run_that_is_done_asks_nobody(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """And accounting is not asked for the trials that are."""
    for trial in (A, B, C):
        write_json(run.trial(trial).done, {})
    asked = answers(monkeypatch, squeue=row("7_3", "RUNNING"))
    assert set(jobs.job_states(run)[0]) == {D} and [command[0] for command in asked] == ["squeue"]
    write_json(run.trial(D).done, {})
    asked = answers(monkeypatch)
    assert jobs.job_states(run) == ({}, ()) and not asked


def test_only_this_users_jobs_of_this_run_are_cancelled(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm counts from 1 again when its database is lost: an id may be somebody else's, or another run's, by now."""
    for array in ("20", "30", "40"):
        submit(run, array, [A, B])
    squeue = row("7_0", "RUNNING") + row("7_1", "PENDING") + row("8", "PENDING", name="report-emodb-1a2b3c4d")
    squeue += (
        row("20_0", "RUNNING", user=UID + 1) + row("30_0", "RUNNING", name="ser-emodb-99999999") + row("40_0", "COMPLETED")
    )
    asked = answers(monkeypatch, squeue=squeue, scancel="")
    assert jobs.cancel(run) == ("7", "8")
    assert asked[-1] == ("scancel", "7", "8")


def test_a_refusal_to_cancel_is_told_in_slurms_words(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, squeue=row("7_0", "RUNNING"), scancel=SlurmError("scancel: error: Kill job error on job id 7"))
    with pytest.raises(UserError, match="Kill job error"):
        jobs.cancel(run)


def command(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of Slurm that does this."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_users_own_filters_hide_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SQUEUE_PARTITION=debug in ~/.bashrc every trial would look as if it were not queued, and be submitted twice."""
    command(tmp_path, "squeue", 'echo "$SQUEUE_PARTITION$SLURM_TIME_FORMAT$SLURM_CONF"', monkeypatch)
    for name in ("SQUEUE_PARTITION", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("SLURM_CONF", "kept")
    assert slurm_queue.ask_slurm("squeue") == "kept\n"


def test_a_command_that_fails_hangs_or_is_missing_is_a_slurm_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1", monkeypatch)
    command(tmp_path, "squeue", "exec sleep 30", monkeypatch)
    monkeypatch.setattr(queries, "_ASK_S", 0.2)
    for name, words in (("sacct", "storage is disabled"), ("squeue", "no answer within"), ("no_such_command", "there is no")):
        with pytest.raises(SlurmError, match=words):
            slurm_queue.ask_slurm(name)
