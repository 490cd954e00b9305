"""What Slurm was asked to do for a run, and what has become of it.

    record       after every submission, one line in RUN/jobs/submitted.jsonl
    job_states   for showing: squeue, then sacct for what has left the queue; whatever does not answer becomes a note
    active       for submitting: what is queued or running now, from squeue or not at all
    cancel       this run's jobs, and no others

A job is named as Slurm names it: "123_4" is element 4 of array 123, and "123" a job that is no array.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from ser_hpc.errors import UserError
from ser_hpc.files import read_json, sync
from ser_hpc.results.run_dir import RunDir, Trial

_LIMIT_S = 30
_SEPARATOR = "\x1f"  # names, reasons and node lists hold commas, blanks and bars
_SQUEUE_FIELDS = "%i %U %j %T %r %N %M %L".replace(" ", _SEPARATOR)
_SACCT_FIELDS = "JobID,UID,JobName,State,NodeList,Elapsed,ExitCode"
UNKNOWN = "UNKNOWN"  # ours: it may be queued or running, but Slurm cannot be asked
FORGOTTEN = "FORGOTTEN"  # ours: squeue knows it no more and sacct cannot tell
# A state that is not one of these, even one of a later Slurm, may still come to something: it counts as active.
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"}
_ENDED |= {"REVOKED", FORGOTTEN}


@dataclass(frozen=True, slots=True)
class Submission:
    """One array and its report job. Element K of the array runs the trials `elements[K]`; `when` is in epoch seconds."""

    array: str
    report: str | None
    when: float
    elements: tuple[tuple[Trial, ...], ...]


@dataclass(frozen=True, slots=True)
class JobState:
    """`user`: a uid; `state`: in Slurm's words, or ours; `left_s`: until its time limit; `exit_code`: "1:0", once it has ended.

    Times in seconds, None where unknown.
    """

    job: str
    user: str
    name: str
    state: str
    reason: str = ""
    nodes: str = ""
    elapsed_s: float | None = None
    left_s: float | None = None
    exit_code: str | None = None

    @property
    def is_active(self) -> bool:
        """Queued, running, or on its way back to the queue."""
        return self.state not in _ENDED

    @property
    def array(self) -> str:
        return self.job.split("_")[0]


class SlurmError(Exception):
    """A command of Slurm is missing, took too long or refused; its words."""


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
    """Oldest first; a line cut off by a kill is passed over."""
    try:
        lines = run.submitted.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    found = []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)
            elements = tuple(tuple(Trial(seed, fold) for seed, fold in trials) for trials in told["elements"])
            found.append(Submission(told["array"], told["report"], told["when"], elements))
    return tuple(found)


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
        told = _by_owner(_squeue(owners), owners)
    except SlurmError as error:
        notes.append(f"The queue is not known ({error}): this is what the trials themselves have written.")
        otherwise = UNKNOWN
    untold = [job for job in owners if job not in told and not all(run.trial(trial).is_done for trial in owners[job])]
    if untold:
        try:
            told |= _by_owner(_sacct(untold), owners)
        except SlurmError as error:
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
        known = _by_owner((job for job in _squeue(owners) if job.is_active), owners)
    except SlurmError as error:
        raise UserError(
            f"jobs were submitted for {run.path} before, and whether they are still queued cannot be asked ({error}). "
            "Nothing was submitted; try again when Slurm answers"
        ) from error
    return _of_trials(owners, known)


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
        queued = [job for job in _squeue(ours) if job.is_active and job.user == user and job.name.endswith(suffix)]
        jobs = sorted({job.array for job in queued}, key=int)
        if jobs:
            ask_slurm("scancel", *jobs)
    except SlurmError as error:
        raise UserError(f"Slurm could not be asked to cancel the jobs of {run.path}: {error}") from error
    return tuple(jobs)


def ask_slurm(*command: str) -> str:
    """What a command of Slurm prints. Raises SlurmError."""
    name = command[0]
    if shutil.which(name) is None:
        raise SlurmError(f"there is no {name} on this machine")
    # A user's own filters and formats (SQUEUE_PARTITION, SACCT_FORMAT ...) would hide jobs or change what is read here.
    private = ("SQUEUE_", "SACCT_", "SCANCEL_", "SLURM_TIME_FORMAT")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(private)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{name} gave no answer within {_LIMIT_S} s") from None
    except OSError as error:
        raise SlurmError(f"{name}: {error}") from error
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines()
        raise SlurmError(said[0] if said else f"{name} ended with exit code {done.returncode}")
    return done.stdout


def _squeue(jobs: Iterable[str]) -> list[JobState]:
    """What the queue knows of `jobs`, each array element by itself; those that ended a few minutes ago are still in it."""
    try:
        lines = ask_slurm(
            *("squeue", "--all", "--array", "--states=all", "--noheader"),
            f"--jobs={_arrays(jobs)}",
            f"--format={_SQUEUE_FIELDS}",
        )
    except SlurmError as error:
        if "Invalid job id" in str(error):  # asked for one job alone, which has left the queue
            return []
        raise
    return [
        JobState(job, user, name, state, _present(reason), _present(nodes), _seconds(used), _seconds(left))
        for job, user, name, state, reason, nodes, used, left in _rows(lines, 8)
    ]


def _sacct(jobs: Iterable[str]) -> list[JobState]:
    """What accounting remembers of `jobs`, the newest start of each."""
    command = ("sacct", "--noheader", "--parsable2", f"--delimiter={_SEPARATOR}", "--allocations")
    lines = ask_slurm(*command, f"--jobs={_arrays(jobs)}", f"--format={_SACCT_FIELDS}")
    return [
        JobState(job, user, name, state.split()[0], "", _present(nodes), _seconds(elapsed), None, exit_code)
        for job, user, name, state, nodes, elapsed, exit_code in _rows(lines, 7)
        if state  # which may be "CANCELLED by 1000"
    ]


def _arrays(jobs: Iterable[str]) -> str:
    return ",".join(sorted({job.split("_")[0] for job in jobs}))


def _rows(text: str, fields: int) -> Iterator[list[str]]:
    """Lines that are rows: with several clusters Slurm also prints their names."""
    rows = (line.split(_SEPARATOR) for line in text.splitlines())
    return ([field.strip() for field in row] for row in rows if len(row) == fields)


def _owners(run: RunDir) -> dict[str, tuple[Trial, ...]]:
    """Which trials each job runs, oldest job first: as recorded, and for jobs that nobody recorded as their attempts say."""
    owners = {
        f"{submission.array}_{number}": trials
        for submission in submissions(run)
        for number, trials in enumerate(submission.elements)
    }
    for trial in run.trials():
        for attempt in run.trial(trial).attempts:
            with suppress(OSError, ValueError, KeyError, TypeError):
                job = read_json(attempt.attempt)["job"]
                if job is not None and _name(job, owners) not in owners:
                    owners[job] = (trial,)
    return owners


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


def _present(field: str) -> str:
    return "" if field in ("None", "None assigned", "N/A", "(null)", "Unknown") else field


def _seconds(text: str) -> float | None:
    """Of Slurm's `1-02:03:04`, `02:03:04` or `03:04`; None for UNLIMITED, INVALID, NOT_SET and the like."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
        return float(int(days or 0) * 86400 + seconds)
    except ValueError:
        return None
