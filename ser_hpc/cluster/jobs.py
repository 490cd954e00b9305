"""What Slurm was asked to do for a run, and what has become of it.

record       after every submission, one line in RUN/jobs/submitted.jsonl
job_states   for showing: squeue, then sacct for what has left the queue; whatever does not answer becomes a note
active       for submitting: what is queued or running now, from squeue or not at all
cancel       this run's jobs, and no others
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from ser_hpc.cluster.slurm_queue import FORGOTTEN, UNKNOWN, JobState, SlurmError, ask_slurm, sacct, squeue
from ser_hpc.errors import UserError
from ser_hpc.files import read_json, sync
from ser_hpc.results.run_dir import RunDir, Trial


@dataclass(frozen=True, slots=True)
class Submission:
    """One array and its report job. Element K of the array runs the trials `elements[K]`; `when` is in epoch seconds.

    `code`: digest of the code that they run.
    """

    array: str
    report: str | None
    when: float
    elements: tuple[tuple[Trial, ...], ...]
    code: str | None = None


def record(run: RunDir, submission: Submission) -> None:
    """Append a submission, whole and synced, after whatever a kill has left of an earlier line."""
    line = asdict(submission) | {"elements": [[[t.seed, t.fold] for t in trials] for trials in submission.elements]}
    run.jobs.mkdir(parents=True, exist_ok=True)
    with run.submitted.open("ab+") as file:
        cut_off = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut_off = file.read() != b"\n"
        file.write(b"\n" * cut_off + json.dumps(line).encode() + b"\n")
    sync(run.submitted)
    sync(run.jobs)


def submissions(run: RunDir) -> tuple[Submission, ...]:
    """Oldest first; a later line of the same array replaces the earlier, one cut off by a kill is passed over."""
    try:
        lines = run.submitted.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    found: dict[str, Submission] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)
            elements = tuple(tuple(Trial(seed, fold) for seed, fold in trials) for trials in told["elements"])
            found[told["array"]] = Submission(told["array"], told["report"], told["when"], elements, told.get("code"))
    return tuple(found.values())


def job_states(run: RunDir) -> tuple[dict[Trial, JobState], tuple[str, ...]]:
    """The job of each trial that has one, and notes on what could not be asked. Never raises because of Slurm.

    Of several jobs of a trial the one that is active is told, else the newest.
    """
    owners = _owners(run)
    if not owners:
        return {}, ()
    notes: list[str] = []
    otherwise = FORGOTTEN
    told: dict[str, JobState] = {}
    try:
        told = _by_owner(squeue(owners), owners)
    except SlurmError as error:
        notes.append(f"The queue is not known ({error}): this is what the trials themselves have written.")
        otherwise = UNKNOWN
    if untold := [job for job in owners if job not in told]:
        try:
            told |= _by_owner(sacct(untold), owners)
        except SlurmError as error:
            if not notes:
                notes.append(f"Jobs that have left the queue are known from their files alone ({error}).")
    return _of_trials(owners, {job: told.get(job, JobState(job, "", "", otherwise)) for job in owners}), tuple(notes)


def active(run: RunDir) -> dict[Trial, JobState]:
    """Trials that Slurm has queued, runs or will run again: none of these may be submitted.

    Raises UserError if squeue cannot be asked, for a trial must not be submitted twice.
    """
    owners = _owners(run)
    if not owners:
        return {}
    try:
        known = _by_owner((job for job in squeue(owners) if job.is_active), owners)
    except SlurmError as error:
        raise UserError(
            f"jobs were submitted for {run.path} before, and whether they are still queued cannot be asked ({error}). "
            "Nothing was submitted; try again when Slurm answers"
        ) from error
    return _of_trials(owners, known)


def queued_codes(run: RunDir, held: Collection[Trial]) -> dict[str, list[Trial]]:
    """The code that the trials `held` by Slurm were submitted with, by its digest."""
    codes: dict[Trial, str] = {}
    for submission in submissions(run):
        if submission.code is not None:
            codes |= {trial: submission.code for trials in submission.elements for trial in trials if trial in held}
    return {code: sorted(trial for trial in codes if codes[trial] == code) for code in sorted(set(codes.values()))}


def cancel(run: RunDir) -> tuple[str, ...]:
    """Ask Slurm to cancel what this run's launchers have submitted, reports too; returns the ids of those jobs.

    Only jobs of this user whose name ends in the run's: after a reset of Slurm's counter the ids may be somebody else's.
    Raises UserError with Slurm's words if it cannot be asked or refuses.
    """
    ours = [job for submission in submissions(run) for job in (submission.array, submission.report) if job is not None]
    if not ours:
        return ()
    user, suffix = str(os.getuid()), f"-{run.path.resolve().name}"
    try:
        queued = [job for job in squeue(ours) if job.is_active and job.user == user and job.name.endswith(suffix)]
        jobs = sorted({job.array for job in queued}, key=int)
        if jobs:
            ask_slurm("scancel", *jobs)
    except SlurmError as error:
        raise UserError(f"Slurm could not be asked to cancel the jobs of {run.path}: {error}") from error
    return tuple(jobs)


def _owners(run: RunDir) -> dict[str, tuple[Trial, ...]]:
    """Which trials each job runs, oldest job first: as recorded, and for jobs that nobody recorded as their attempts say.

    Without jobs all of whose trials are done.
    """
    owners = {
        f"{submission.array}_{number}": trials
        for submission in submissions(run)
        for number, trials in enumerate(submission.elements)
    }
    known = {*run.begun(), *(trial for trials in owners.values() for trial in trials)}  # a damaged plan must not hide a job
    todo = [place for trial in sorted(known) if not (place := run.trial(trial)).is_done]
    for place in todo:
        for attempt in place.attempts:
            with suppress(OSError, ValueError, KeyError, TypeError):
                job = read_json(attempt.attempt)["job"]
                if job is not None and _name(job, owners) not in owners:
                    owners[job] = (place.trial,)
    unfinished = {place.trial for place in todo}
    return {job: trials for job, trials in owners.items() if not unfinished.isdisjoint(trials)}


def _name(job: str, owners: Collection[str]) -> str:
    """A submission of one element is no array to submitit: its job is "123", and its element "123_0"."""
    return job if job in owners else f"{job}_0"


def _by_owner(jobs: Iterable[JobState], owners: Collection[str]) -> dict[str, JobState]:
    return {name: job for job in jobs if (name := _name(job.job, owners)) in owners}


def _of_trials(owners: Mapping[str, tuple[Trial, ...]], known: Mapping[str, JobState]) -> dict[Trial, JobState]:
    """Each trial's active job, else its newest."""
    states: dict[Trial, JobState] = {}
    for job, trials in owners.items():
        for trial in trials if job in known else ():
            if trial not in states or known[job].is_active or not states[trial].is_active:
                states[trial] = known[job]
    return states
