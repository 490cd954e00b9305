"""Find, follow and cancel the Slurm jobs that run a run's trials.

job_states           for showing: squeue, then sacct for what has left the queue; whatever does not answer becomes a note
active_jobs          for submitting: what is queued or running now, from squeue or not at all
settle_submissions   for submitting: those without a recorded answer are looked for by name, adopted or declared void
cancel_jobs          this run's jobs, and no others

A job is one of ours by cluster, user, name and number, never by its number alone. Jobs come from the record of submissions,
from arrays of slurm/train.sbatch that wait for this run, and, for what nobody noted, from what attempts say of themselves.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ser_hpc.core.atomic_io import read_json, write_text
from ser_hpc.core.errors import UserError, listed
from ser_hpc.launchers.job_state import FORGOTTEN, UNKNOWN, JobState
from ser_hpc.launchers.slurm.queue import SlurmError, cluster_name, run_slurm, sacct, squeue
from ser_hpc.launchers.slurm.submissions import VOID, Submission, read_submissions, record_submission
from ser_hpc.run.run_dir import RunDir, Trial

SCRIPT = "train.sbatch"
_RESOLVE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Element:
    """A job that runs trials of the run, and how to recognise it; None: not on record."""

    trials: tuple[Trial, ...]
    name: str | None = None
    user: int | None = None
    cluster: str | None = None

    def matches(self, row: JobState) -> bool:
        return self.name in (None, row.name) and (self.user is None or str(self.user) == row.user)


def job_states(run: RunDir) -> tuple[dict[Trial, JobState], tuple[str, ...]]:
    """Return the job of each trial that has one, and notes on what could not be asked. Never raises because of Slurm.

    Of several jobs of a trial the active one counts, else the newest.
    """
    if not _may_have_jobs(run):
        return {}, ()
    notes: list[str] = []
    rows: list[JobState] = []
    absent = FORGOTTEN
    try:
        rows = squeue(_users(run))
    except SlurmError as error:
        notes.append(f"The queue is not known ({error}): this is what the trials themselves have written.")
        absent = UNKNOWN
    elements = _elements(run, rows)
    here, elsewhere = _split(elements)
    known = _by_element(rows, here)
    if left := [job for job in here if job not in known]:
        try:
            # Accounting may lag behind: what the queue does not hold any more neither waits nor runs.
            gone = [job for job in sacct(left) if absent == UNKNOWN or not job.is_active]
            known |= _by_element(gone, here)
        except SlurmError as error:
            if not notes:
                notes.append(f"Jobs that have left the queue are known from their files alone ({error}).")
    known |= {job: JobState(job, "", "", absent) for job in here if job not in known}
    known |= {job: JobState(job, "", "", UNKNOWN) for job in elsewhere}
    if elsewhere:
        names = listed(sorted({element.cluster or "" for element in elsewhere.values()}))
        notes.append(f"Jobs of this run were submitted on {names}, whose queue cannot be asked from here.")
    return _of_trials(elements, known), tuple(notes)


def active_jobs(run: RunDir, *, on_slurm: bool = False, but: str = "") -> dict[Trial, JobState]:
    """Return the trials that Slurm has queued, runs or will run again, with their jobs: none of these may be submitted.

    `on_slurm`: ask also where nothing was submitted yet, for arrays of slurm/train.sbatch that wait; `but`: an array that does
    not count.
    Raises UserError if squeue cannot be asked, for a trial must not be submitted twice.
    """
    if not on_slurm and not _may_have_jobs(run):
        return {}
    elements: dict[str, _Element] = {}
    try:
        rows = squeue(_users(run))
        elements = _elements(run, rows)
        here, elsewhere = _split(elements)
    except SlurmError as error:
        raise UserError(
            f"jobs may have been submitted for {run.path} before, and whether they are still queued cannot be asked ({error}). "
            "Nothing was submitted; try again when Slurm answers"
        ) from error
    if elsewhere:
        names = sorted({element.cluster or "" for element in elsewhere.values()})
        raise UserError(
            f"jobs of {run.path} were submitted on another cluster ({listed(names)}: {listed(sorted(elsewhere))}), whose queue "
            f"cannot be asked from here. Launch there; or, once you have seen that they ended, add --ended {names[0]}"
        )
    return _of_trials(here, _by_element((row for row in rows if row.is_active and row.array != but), here))


def settle_submissions(run: RunDir) -> list[str]:
    """Find out about submissions whose answer was never noted: their launcher was killed, or Slurm did not say.

    The caller holds the run's lock, so none is being made now. What is in the queue is adopted; what is not is declared void,
    and should Slurm take it all the same its jobs end at once (requeue_script.element). Returns a line for each job adopted.
    Raises UserError if squeue cannot be asked.
    """
    unanswered = [submission for submission in read_submissions(run) if submission.outcome == "asked"]
    if not unanswered:
        return []
    try:
        rows, cluster = squeue({submission.user for submission in unanswered}), cluster_name()
    except SlurmError as error:
        raise UserError(
            f"a launch of {run.path} was cut off while Slurm was asked to take its jobs, and whether it has cannot be asked "
            f"({error}). Nothing was submitted; try again when Slurm answers"
        ) from error
    found = []
    for submission in unanswered:
        if None in (cluster, submission.cluster) or cluster == submission.cluster:
            job = find_job(submission, rows)
            if job is None and submission.mark:
                write_text(run.jobs / submission.mark / VOID, "")
            record_submission(run, replace(submission, job=job, outcome="queued" if job else "void"))
            if job and submission.kind == "trials":
                found.append(f"job {job} was queued by a launch that was cut off: it is this run's, and is left alone.")
    return found


def find_job(submission: Submission, rows: Iterable[JobState]) -> str | None:
    """Return the number of the job that a submission became, known by its name; None if it is not in `rows`."""
    of_it = (row for row in rows if row.name == submission.name and row.user == str(submission.user))
    return next((row.array for row in of_it), None)


def end_elsewhere(run: RunDir, cluster: str) -> None:
    """Take the user's word that no job of this run is left on another cluster. Raises UserError where there was none."""
    theirs = [submission for submission in read_submissions(run) if submission.cluster == cluster]
    if not theirs:
        raise UserError(f"--ended {cluster}: no job of {run.path} was submitted there")
    for submission in theirs:
        record_submission(run, replace(submission, outcome="void"))


def queued_codes(run: RunDir, held: Collection[Trial]) -> dict[str, list[Trial]]:
    """Return the code that the trials `held` by Slurm were submitted with: its digest, and the trials."""
    codes: dict[Trial, str] = {}
    for submission in read_submissions(run):
        if submission.code is not None:
            codes |= {trial: submission.code for trial in submission.trials if trial in held}
    return {code: sorted(trial for trial in codes if codes[trial] == code) for code in sorted(set(codes.values()))}


def of_this_array(run: RunDir, env: Mapping[str, str], code: str) -> Submission:
    """Return the submission that a task of slurm/train.sbatch records of its array, whose element K runs the K-th trial."""
    array = env["SLURM_ARRAY_JOB_ID"]
    first, last, step, count = (int(env[f"SLURM_ARRAY_TASK_{name}"]) for name in ("MIN", "MAX", "STEP", "COUNT"))
    numbers = set(range(first, last + 1, step))
    if len(numbers) != count:  # a list, of which tasks are told no more
        with suppress(SlurmError):
            numbers &= {row.element for row in squeue({os.getuid()}) if row.array == array}
    trials = run.trials()
    elements = {number: (trials[number],) for number in sorted(numbers) if number < len(trials)}
    name, cluster = env["SLURM_JOB_NAME"], env.get("SLURM_CLUSTER_NAME")
    return Submission("trials", name, time.time(), elements, job=array, cluster=cluster, host=socket.gethostname(), code=code)


def find_older_job(run: RunDir, trial: Trial, array: str) -> JobState | None:
    """Return a job submitted before this array that will run, or runs, this trial; None too where Slurm cannot be asked."""
    with suppress(UserError, SlurmError):
        held = active_jobs(run, on_slurm=True, but=array).get(trial)
        if held is not None and int(held.array) < int(array):
            return held
    return None


def active_reports(run: RunDir) -> set[str]:
    """Return the run's report jobs that are queued or running. Raises SlurmError."""
    ours = {submission.name for submission in read_submissions(run) if submission.kind == "report"}
    return {row.array for row in squeue({os.getuid()}) if row.is_active and row.name in ours} if ours else set()


def cancel_waiting(arrays: Collection[str]) -> None:
    """Cancel those of these jobs that have not begun, as far as Slurm answers."""
    if arrays:
        with suppress(SlurmError):
            run_slurm("scancel", "--state=PENDING", *sorted(arrays, key=int))


def cancel_jobs(run: RunDir) -> tuple[str, ...]:
    """Cancel what was submitted for this run by this user, reports too; return the ids of those jobs.

    Raises UserError with Slurm's message if it cannot be asked or refuses.
    """
    known, user = read_submissions(run), os.getuid()
    if not known:
        return ()
    try:
        rows, cluster = [row for row in squeue({user}) if row.is_active and row.user == str(user)], cluster_name()
        here = [submission for submission in known if None in (cluster, submission.cluster) or submission.cluster == cluster]
        ours = {find_job(submission, rows) if submission.mark else submission.job for submission in here}
        names = {submission.name for submission in here}
        jobs = sorted({row.array for row in rows if row.array in ours and row.name in names}, key=int)
        if jobs:
            run_slurm("scancel", *jobs)
    except SlurmError as error:
        raise UserError(f"Slurm could not be asked to cancel the jobs of {run.path}: {error}") from error
    return tuple(jobs)


def _may_have_jobs(run: RunDir) -> bool:
    """Return whether anything of the run that is not done was ever given to Slurm."""
    for submission in read_submissions(run):
        if submission.outcome == "asked" or any(not run.trial(trial).is_done for trial in submission.trials):
            return True
    return bool(_elements(run, ()))


def _users(run: RunDir) -> set[int]:
    """Return the users whose jobs may be the run's: this one, and whoever else has launched it."""
    return {os.getuid(), *(submission.user for submission in read_submissions(run) if submission.outcome != "void")}


def _elements(run: RunDir, rows: Sequence[JobState]) -> dict[str, _Element]:
    """Return the jobs that run trials of the run, oldest first, as far as known; without those all of whose trials are done.

    `rows`: the queue, in which submissions are found whose number nobody has noted.
    """
    elements: dict[str, _Element] = {}
    known = [submission for submission in read_submissions(run) if submission.outcome != "void" and submission.kind == "trials"]
    for submission in known:
        if (job := submission.job or find_job(submission, rows)) is not None:
            identity = (submission.name, submission.user, submission.cluster)
            elements |= {f"{job}_{number}": _Element(trials, *identity) for number, trials in submission.elements.items()}
    elements |= dict(_waiting_scripts(run, rows, {submission.job for submission in known}))
    trials = {
        *run.trials_on_disk(),
        *(trial for element in elements.values() for trial in element.trials),
    }  # a plan may be damaged
    unfinished = {trial for trial in trials if not run.trial(trial).is_done}
    for trial in sorted(unfinished):
        for attempt in run.trial(trial).attempts:
            with suppress(OSError, ValueError, KeyError, TypeError):
                about = read_json(attempt.attempt)
                if about["job"] is not None and _key(about["job"], elements) not in elements:
                    identity = (about.get("job_name"), about.get("user"), about.get("cluster"))
                    elements[about["job"]] = _Element((trial,), *identity)
    return {job: element for job, element in elements.items() if not unfinished.isdisjoint(element.trials)}


def _split(elements: Mapping[str, _Element]) -> tuple[dict[str, _Element], dict[str, _Element]]:
    """Divide the jobs into those of the cluster that answers here and those of others."""
    here = cluster_name() if any(element.cluster for element in elements.values()) else None
    other = {job: element for job, element in elements.items() if here and element.cluster and element.cluster != here}
    return {job: element for job, element in elements.items() if job not in other}, other


def _waiting_scripts(run: RunDir, rows: Iterable[JobState], known: Collection[str | None]) -> Iterator[tuple[str, _Element]]:
    """Yield arrays of slurm/train.sbatch for this run of which no task has begun: nobody has recorded those."""
    for row in rows:
        arguments = _split_command(row.command)
        if row.is_active and row.array not in known and arguments and Path(arguments[0]).name == SCRIPT:
            path, trials = _planned_by(tuple(arguments[1:]), row.folder)
            if path == run.path.resolve() and row.element < len(trials):
                yield row.job, _Element((trials[row.element],), row.name, int(row.user))


@lru_cache(maxsize=64)
def _planned_by(arguments: tuple[str, ...], folder: str) -> tuple[Path | None, tuple[Trial, ...]]:
    """Return the run directory and trials that a script's arguments mean in that folder; none where they make no sense here."""
    config, *overrides = arguments or ("demo",)
    command = [sys.executable, "-m", "ser_hpc.launch", "--prepare", "--dry-run", "--config", config, *overrides]
    with suppress(OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_RESOLVE_S)
        planned = json.loads(done.stdout)
        return Path(planned["run"]), tuple(Trial(seed, fold) for seed, fold in planned["trials"])
    return None, ()


def _split_command(command: str) -> list[str]:
    """Split a command that Slurm has joined with blanks; it keeps no quotes."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _key(job: str, elements: Collection[str]) -> str:
    """Return the element's id. In earlier versions a submission of one element was no array: job "123", element "123_0"."""
    return job if job in elements else f"{job}_0"


def _by_element(rows: Iterable[JobState], elements: Mapping[str, _Element]) -> dict[str, JobState]:
    """Select the rows that belong to these elements, by number, name and user."""
    named = ((_key(row.job, elements), row) for row in rows)
    return {key: row for key, row in named if key in elements and elements[key].matches(row)}


def _of_trials(elements: Mapping[str, _Element], known: Mapping[str, JobState]) -> dict[Trial, JobState]:
    """Return each trial's active job, else its newest."""
    states: dict[Trial, JobState] = {}
    for job, element in elements.items():
        for trial in element.trials if job in known else ():
            if trial not in states or known[job].is_active or not states[trial].is_active:
                states[trial] = known[job]
    return states
