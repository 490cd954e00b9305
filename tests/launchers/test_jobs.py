"""What was submitted is never forgotten, what is queued is never submitted again, and nobody else's job is cancelled."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.core.atomic_io import write_json
from ser_hpc.core.errors import UserError
from ser_hpc.launchers.job_state import FORGOTTEN, UNKNOWN
from ser_hpc.launchers.slurm import enqueue, jobs, queue, slurm_info, submissions
from ser_hpc.launchers.slurm.queue import SlurmError
from ser_hpc.launchers.slurm.submissions import Submission, record_submission
from ser_hpc.run.run_dir import RunDir, Trial

A, B, C, D = (Trial(0, fold) for fold in range(4))
UID = os.getuid()
NAME = "emodb-1a2b3c4d"
DOWN = SlurmError("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of four trials, submitted as elements 0 to 3 of array 7, report 8."""
    run = RunDir(tmp_path / NAME)
    write_json(run.plan, {"trials": [{"seed": t.seed, "fold": t.fold} for t in (A, B, C, D)]})
    submit(run, "7", [A, B, C, D])
    return run


def submit(run: RunDir, array: str, trials: Sequence[Trial]) -> None:
    record_submission(run, taken(run, array, *((trial,) for trial in trials)))
    record_submission(run, Submission("report", f"report-{NAME}-r{array}", 1e9, mark=f"r{array}", job=str(int(array) + 1)))


def taken(run: RunDir, array: str, *elements: tuple[Trial, ...]) -> Submission:
    """An array that Slurm has taken."""
    return Submission("trials", f"ser-{NAME}-{array}", 1e9, dict(enumerate(elements)), mark=array, job=array)


def answers(monkeypatch: pytest.MonkeyPatch, **said: str | SlurmError) -> list[tuple[str, ...]]:
    """Let Slurm's commands say this; returns what they are asked."""
    asked = []

    def answer(*command: str) -> str:
        asked.append(command)
        words = said.get(command[0], SlurmError(f"there is no {command[0]} on this machine"))
        if isinstance(words, SlurmError):
            raise words
        return words.replace("|", "\x1f")

    for module in (jobs, queue):
        monkeypatch.setattr(module, "run_slurm", answer)
    return asked


def row(job: str, state: str, reason: str = "None", nodes: str = "", name: str = "", user: int = UID, command: str = "") -> str:
    """A line of squeue."""
    name = name or f"ser-{NAME}-{job.split('_')[0]}"
    return f"{job}|{user}|{name}|{state}|{reason}|{nodes}|0:00|4:00:00|0|0|{command}|/home|\n"


def test_submissions_survive_a_kill_at_any_byte_of_the_next_one(run: RunDir) -> None:
    before = run.submitted.read_bytes()
    second = taken(run, "17", (A, B), (C,))
    record_submission(run, second)
    whole = run.submitted.read_bytes()
    first, report, _ = submissions.read_submissions(run)
    assert submissions.read_submissions(run) == (first, report, second)
    for cut in range(len(before), len(whole) - 1):
        run.submitted.write_bytes(whole[:cut])
        assert submissions.read_submissions(run)[0] == first
        record_submission(run, second)
        assert [submissions.read_submissions(run)[0], submissions.read_submissions(run)[-1]] == [first, second]


# Recorded from Slurm 22.05.8: an array of which element 2 had requeued itself and elements 4 to 7 were cancelled.
SQUEUE = """\
7_7|0|ser-emodb-1a2b3c4d-7|CANCELLED|JobArrayTaskLimit||0:00|1:00|0|0|||
7_4|0|ser-emodb-1a2b3c4d-7|CANCELLED|None|n2|0:32|0:28|0|15|||
7_2|0|ser-emodb-1a2b3c4d-7|RUNNING|None|n2|0:26|0:34|1|0|||
7_0|0|ser-emodb-1a2b3c4d-7|FAILED|NonZeroExitCode|n1|0:00|1:00|0|768|||
7_3|0|ser-emodb-1a2b3c4d-7|TIMEOUT|TimeLimit|n2|1:12|INVALID|0|15|||
8|0|report-emodb-1a2b3c4d-r7|PENDING|Dependency||0:00|UNLIMITED|0|0|||
""".replace("|0|", f"|{UID}|", 1)
SACCT = """\
7_0|0|ser-emodb-1a2b3c4d-7|FAILED|n1|00:00:00|3:0
7_1|0|ser-emodb-1a2b3c4d-7|CANCELLED by 1000|n1|1-00:05:01|0:0
7_[2-3%2]|0|ser-emodb-1a2b3c4d-7|CANCELLED by 1000|None assigned|00:00:00|0:0
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
    states = jobs.active_jobs(run)
    assert states[A].reason == reason and states[A].nodes == "" and states[B].nodes == "n[1-2,7]"


@pytest.mark.parametrize(
    "state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "REQUEUE_HOLD", "A_LATER_SLURMS"]
)
def test_whatever_has_not_ended_is_active(run: RunDir, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    answers(monkeypatch, squeue=row("7_0", state) + row("7_1", "FAILED") + row("7_2", "TIMEOUT", "TimeLimit"))
    assert set(jobs.active_jobs(run)) == {A}


def test_an_older_job_that_is_queued_hides_behind_no_newer_one(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(run, "20", [A, B])
    answers(monkeypatch, squeue=row("7_0", "PENDING") + row("20_0", "FAILED") + row("7_1", "FAILED") + row("20_1", "TIMEOUT"))
    states, _ = jobs.job_states(run)
    assert states[A].job == "7_0" and set(jobs.active_jobs(run)) == {A}
    assert states[B].job == "20_1"


def test_an_earlier_versions_line_is_read_and_its_submission_of_one_trial_was_no_array(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain job, whose attempts name it without an element; all jobs of the run had the same name."""
    line = {"array": "30", "report": "31", "when": 1e9, "elements": [[[C.seed, C.fold]]], "code": "abc"}
    with run.submitted.open("a") as file:
        file.write(json.dumps(line) + "\n")
    write_json(run.trial(C).claim().attempt, {"job": "30"})
    report = row("31", "PENDING", name=f"report-{NAME}")
    answers(monkeypatch, squeue=row("30", "RUNNING", nodes="n1", name=f"ser-{NAME}") + report, scancel="")
    assert jobs.cancel_jobs(run) == ("30", "31") and jobs.queued_codes(run, [C]) == {"abc": [C]}
    assert {trial: job.job for trial, job in jobs.active_jobs(run).items()} == {C: "30"}
    states, _ = jobs.job_states(run)
    assert states[C].state == "RUNNING"


def test_what_an_earlier_version_called_otherwise_is_read_in_the_names_of_today(run: RunDir) -> None:
    """A line's time; and a setting of the jobs, which are not said to lack what they have under its old name."""
    line = {"kind": "trials", "name": "ser-x", "when": 5.0, "elements": {"0": [[1, 0]]}, "mark": "x", "job": "50"}
    with run.submitted.open("a") as file:
        file.write(json.dumps(line | {"settings": {"parallel": 4, "time_min": 60}}) + "\n")
    found = submissions.read_submissions(run)[-1]
    assert (found.submitted_at, found.trials) == (5.0, (Trial(1, 0),))
    assert not [*enqueue.not_applied(run, found.trials, ClusterSettings(max_parallel_trials=4, time_min=60))]
    (told,) = enqueue.not_applied(run, found.trials, ClusterSettings(max_parallel_trials=5, time_min=60))
    assert "cluster.max_parallel_trials=5 (theirs: 4)" in told


def test_an_element_may_run_several_trials(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    record_submission(run, taken(run, "40", (A, B), (C, D)))
    answers(monkeypatch, squeue=row("40_1", "RUNNING"))
    assert set(jobs.active_jobs(run)) == {C, D}


def test_jobs_that_no_launcher_recorded_are_known_from_their_attempts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `sbatch slurm/train.sbatch`; an older attempt's job too may still be queued."""
    for job in ("90_2", "91_2"):
        write_json(run.trial(C).claim().attempt, {"job": job})
    answers(monkeypatch, squeue=row("90_2", "PENDING", name="ser"))
    assert {trial: job.job for trial, job in jobs.active_jobs(run).items()} == {C: "90_2"}


@pytest.mark.parametrize("squeue", [DOWN, SlurmError("there is no squeue on this machine")])
def test_without_an_answer_nothing_may_be_submitted_but_status_goes_on(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, squeue: SlurmError
) -> None:
    answers(monkeypatch, squeue=squeue)
    with pytest.raises(UserError, match="Nothing was submitted"):
        jobs.active_jobs(run)
    states, notes = jobs.job_states(run)
    assert len(notes) == 1 and str(squeue) in notes[0]
    assert {states[trial].state for trial in (A, B, C, D)} == {UNKNOWN}


def test_a_controller_that_is_down_leaves_accounting(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, squeue=DOWN, sacct="".join(SACCT.splitlines(keepends=True)[:2]))
    states, notes = jobs.job_states(run)
    assert states[A].exit_code == "3:0" and states[C].state == UNKNOWN and len(notes) == 1


def test_without_accounting_a_job_that_left_the_queue_is_no_longer_active(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, squeue="", sacct=SlurmError("Slurm accounting storage is disabled"))
    states, notes = jobs.job_states(run)
    assert states[A].state == FORGOTTEN and not states[A].is_active and "accounting storage is disabled" in notes[0]
    assert jobs.active_jobs(run) == {}


def test_a_run_that_was_never_submitted_needs_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "local")
    write_json(run.plan, {"trials": [{"seed": 0, "fold": 0}]})
    write_json(run.trial(A).claim().attempt, {"job": None})
    asked = answers(monkeypatch)
    assert jobs.active_jobs(run) == {} and jobs.job_states(run) == ({}, ()) and jobs.cancel_jobs(run) == () and not asked


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
    squeue = row("7_0", "RUNNING") + row("7_1", "PENDING") + row("8", "PENDING", name="report-emodb-1a2b3c4d-r7")
    squeue += (
        row("20_0", "RUNNING", user=UID + 1) + row("30_0", "RUNNING", name="ser-emodb-99999999") + row("40_0", "COMPLETED")
    )
    asked = answers(monkeypatch, squeue=squeue, scancel="")
    assert jobs.cancel_jobs(run) == ("7", "8")
    assert asked[-1] == ("scancel", "7", "8")


def test_a_refusal_to_cancel_is_told_in_slurms_words(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, squeue=row("7_0", "RUNNING"), scancel=SlurmError("scancel: error: Kill job error on job id 7"))
    with pytest.raises(UserError, match="Kill job error"):
        jobs.cancel_jobs(run)


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
    assert queue.run_slurm("squeue") == "kept\n"


def test_a_command_that_fails_hangs_or_is_missing_is_a_slurm_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1", monkeypatch)
    command(tmp_path, "squeue", "exec sleep 30", monkeypatch)
    monkeypatch.setattr(slurm_info, "_ASK_S", 0.2)
    for name, words in (("sacct", "storage is disabled"), ("squeue", "no answer within"), ("no_such_command", "there is no")):
        with pytest.raises(SlurmError, match=words):
            queue.run_slurm(name)


def test_a_row_of_accounting_speaks_for_the_elements_that_it_names(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Element 1 was cancelled while it waited: squeue forgets it, and accounting has no row of its own for it (22.05.8)."""
    rest = f"7_[2-3%2]|{UID}|ser-{NAME}-7|PENDING|None assigned|00:00:00|0:0\n"
    began = f"7_0|{UID}|ser-{NAME}-7|RUNNING|n2|00:10:00|0:0\n"
    answers(monkeypatch, squeue=row("7_0", "RUNNING") + row("7_2", "PENDING") + row("7_3", "PENDING"), sacct=began + rest)
    states, _ = jobs.job_states(run)
    assert states[B].state == FORGOTTEN and states[B].nodes == "" and set(jobs.active_jobs(run)) == {A, C, D}


@pytest.mark.parametrize("elements", ["[1-3]", "[1,3%1]", "[1-3:2]", "[0-40:3,1,3]"])
def test_elements_of_a_row_of_accounting(run: RunDir, monkeypatch: pytest.MonkeyPatch, elements: str) -> None:
    answers(monkeypatch, squeue="", sacct=f"7_{elements}|{UID}|ser-{NAME}-7|CANCELLED|||0:0\n")
    states, _ = jobs.job_states(run)
    assert states[B].state == states[D].state == "CANCELLED"


def test_a_job_is_ours_by_user_and_name_not_by_its_number(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reset of Slurm's counter, and on another cluster, the number is somebody else's: our trial is free."""
    write_json(run.trial(D).claim().attempt, {"job": "90_3", "job_name": "ser", "user": UID, "cluster": None})
    theirs = row("7_0", "RUNNING", user=UID + 1) + row("7_1", "RUNNING", name="lammps") + row("90_3", "PENDING", name="vasp")
    accounting = f"7_2|{UID + 1}|theirs|RUNNING|n1|1:00|0:0\n"
    answers(monkeypatch, squeue=theirs, sacct=accounting)
    assert jobs.active_jobs(run) == {}
    states, _ = jobs.job_states(run)
    assert {state.state for state in states.values()} == {FORGOTTEN}


def test_jobs_on_another_cluster_are_not_taken_for_those_that_have_their_numbers_here(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_submission(run, replace(taken(run, "7", (A,), (B,), (C,), (D,)), cluster="far"))
    answers(monkeypatch, squeue="", sacct="", scontrol="ClusterName = here\n")
    with pytest.raises(UserError, match=r"on another cluster .far: 7_0.*--ended far"):
        jobs.active_jobs(run)
    states, notes = jobs.job_states(run)
    assert states[A].state == UNKNOWN and "submitted on far" in notes[0]
    jobs.end_elsewhere(run, "far")
    assert jobs.active_jobs(run) == {}
    with pytest.raises(UserError, match="no job of"):
        jobs.end_elsewhere(run, "farther")


def test_a_colleagues_jobs_of_the_run_are_the_runs(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run lies in a folder of the group: whoever launched it, its trials are not submitted again, nor cancelled by us."""
    record_submission(run, replace(taken(run, "20", (A,)), user=UID + 1))
    asked = answers(monkeypatch, squeue=row("20_0", "RUNNING", user=UID + 1), scancel="")
    assert set(jobs.active_jobs(run)) == {A} and f"--user={UID},{UID + 1}" in asked[0]
    assert jobs.cancel_jobs(run) == ()


def test_a_submission_without_an_answer_is_looked_for_by_its_name(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher was killed: what Slurm took is adopted, what it did not take is void, and status knows it either way."""
    for mark, trial in (("50", A), ("60", B)):
        record_submission(run, replace(taken(run, mark, (trial,)), job=None, outcome="asked"))
    answers(monkeypatch, squeue=row("123_0", "PENDING", name=f"ser-{NAME}-50"), sacct="")
    states, _ = jobs.job_states(run)
    assert states[A].job == "123_0" and set(jobs.active_jobs(run)) == {A}
    (found,) = jobs.settle_submissions(run)
    assert "123" in found and jobs.settle_submissions(run) == []
    assert [(known.job, known.outcome) for known in submissions.read_submissions(run)][2:] == [
        ("123", "queued"),
        (None, "void"),
    ]
    answers(monkeypatch, squeue=DOWN)
    record_submission(run, replace(taken(run, "70", (C,)), job=None, outcome="asked"))
    with pytest.raises(UserError, match="cut off while Slurm was asked"):
        jobs.settle_submissions(run)


def test_the_elements_of_an_array_that_a_person_submitted(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch --array=1,3-9 slurm/train.sbatch: a list is in no variable; more elements than trials run nothing."""
    about = {"ARRAY_JOB_ID": "80", "ARRAY_TASK_MIN": "1", "ARRAY_TASK_MAX": "9", "ARRAY_TASK_STEP": "1", "JOB_NAME": "ser"}
    env = {f"SLURM_{name}": value for name, value in about.items()}
    answers(monkeypatch, squeue="".join(row(f"80_{number}", "PENDING", name="ser") for number in (1, 3, 9)))
    assert jobs.of_this_array(run, env | {"SLURM_ARRAY_TASK_COUNT": "3"}, "c0de").elements == {1: (B,), 3: (D,)}
    assert jobs.of_this_array(run, env | {"SLURM_ARRAY_TASK_COUNT": "9"}, "c0de").elements == {1: (B,), 2: (C,), 3: (D,)}


def test_of_two_arrays_of_a_script_the_newer_leaves_trials_to_the_older(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for array in ("80", "90"):
        record_submission(run, Submission("trials", "ser", 1e9, {0: (A,), 1: (B,)}, job=array))
    rows = "".join(row(f"{array}_{element}", "RUNNING", name="ser") for array in (80, 90) for element in (0, 1))
    answers(monkeypatch, squeue=rows)
    older = jobs.find_older_job(run, A, "90")
    assert older is not None and older.job == "80_0" and jobs.find_older_job(run, A, "80") is None
