"""Read the status of each trial of a run: its state (done, or as in monitor/trial_states.py), progress, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ser_hpc.launchers.foreground import waiting_trials
from ser_hpc.launchers.job_state import JobState
from ser_hpc.launchers.slurm import starts
from ser_hpc.launchers.slurm.submissions import Submission, read_submissions
from ser_hpc.monitor.attempt_status import AttemptStatus, read_attempt, read_if_whole
from ser_hpc.monitor.cause_words import FailureCause
from ser_hpc.monitor.logs import find_cause, log_files
from ser_hpc.monitor.trial_states import RUNNING, TrialEvidence, state_of
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir

_READERS = 16
_HANG_MINUTES = 30.0


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """The status of one trial. `number` counts the run's trials from 1; `reason` explains `state`.

    `progress`: the newest that its attempts know, as in progress.json. `remaining_s`: seconds until it is trained, where known;
    `elapsed_s`: seconds that a trial which is done took; `is_untried`: no attempt of its newest job has begun.
    """

    number: int
    trial: Trial
    state: str
    reason: str = ""
    job: JobState | None = None
    attempts: tuple[AttemptStatus, ...] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)
    remaining_s: float | None = None
    elapsed_s: float | None = None
    error: FailureCause | None = None
    is_untried: bool = False
    find_logs: Callable[[], tuple[Path, ...]] = tuple

    @property
    def logs(self) -> tuple[Path, ...]:
        """The logs of its newest start, rank by rank; each access looks for them."""
        return self.find_logs()

    @property
    def nodes(self) -> str:
        if self.job is not None and self.job.nodes and (self.state in (*RUNNING, "suspended") or self.is_untried):
            return self.job.nodes
        return self.attempts[-1].nodes if self.attempts else ""

    @property
    def restarts(self) -> int:
        """The number of restarts; Slurm also counts starts that did not come to an attempt."""
        return max(0, len(self.attempts) - 1, (self.job and self.job.restarts) or 0)

    @property
    def is_open(self) -> bool:
        """True if it is not done, and nothing is queued or running that would complete it."""
        return not self.has_job and self.state in ("failed", "stopped", "not started", "lost")

    @property
    def has_job(self) -> bool:
        """True if Slurm has it queued or running."""
        return self.job is not None and self.job.is_active

    @property
    def runs_without_slurm(self) -> bool:
        return self.state in RUNNING and not self.has_job


def read_status(
    run: RunDir, jobs: Mapping[Trial, JobState], now: float, before: Sequence[TrialStatus] = ()
) -> tuple[TrialStatus, ...]:
    """Read every trial of the plan, in its order. `now`: epoch seconds. Raises UserError if this is no run directory.

    `before`: an earlier result for this run; what was done then is not read again.
    """
    lost_after_s = _lost_after(run)
    submitted = {submission.job: submission for submission in read_submissions(run)}
    done = {status.trial: status for status in before if status.state == "done"}

    def one(number: int, trial: Trial) -> TrialStatus:
        place, job = run.trial(trial), jobs.get(trial)
        if trial in done and place.is_done:
            return replace(done[trial], number=number, job=job)
        return _look(place, number, job, submitted.get(job.array) if job else None, now, lost_after_s)

    trials = run.trials()
    with ThreadPoolExecutor(_READERS) as pool:  # thousands of small files: on a network's file system each one is a wait
        statuses = list(pool.map(one, range(1, len(trials) + 1), trials))
    return tuple(_wait_for_turns(_wait_here(run, statuses)))


def _wait_here(run: RunDir, statuses: Sequence[TrialStatus]) -> list[TrialStatus]:
    """Say of trials that a launcher on this machine has not come to yet that they wait, however their last attempt ended."""
    taken, some_run = waiting_trials(run), any(status.runs_without_slurm for status in statuses)

    def waits(status: TrialStatus) -> bool:
        if not status.attempts:
            return status.state == "not started" and (some_run or status.trial in taken)
        return status.is_open and status.attempts[-1].started < taken.get(status.trial, 0.0)

    reason = "for the trials that run here"
    return [replace(status, state="waiting", reason=reason, error=None) if waits(status) else status for status in statuses]


def _wait_for_turns(statuses: Sequence[TrialStatus]) -> Iterator[TrialStatus]:
    """Say of trials that wait for others of their job, which trains one after another, neither that they start nor are lost."""
    at_work = {status.job.job for status in statuses if status.job and status.state in RUNNING and not status.is_untried}
    for status in statuses:
        waits = status.job is not None and status.job.job in at_work and status.is_untried and status.has_job
        yield replace(status, state="waiting", reason="for other trials of its job", error=None) if waits else status


def failed_nodes(run: RunDir, statuses: Iterable[TrialStatus]) -> tuple[str, ...]:
    """Return where these trials failed, as Slurm writes nodes; without nodes not to blame: a mistake fails everywhere."""
    found: set[str] = set()
    for status in statuses:
        unreached = starts.unreached_nodes(run, status.job.job) if status.job is not None else set()
        if status.attempts or len(unreached) == 1:  # what cannot be started on any node is no node's fault
            found |= unreached
        if (
            status.state in ("failed", "lost")
            and status.attempts
            and status.attempts[-1].description.get("job") is not None
            and (status.error is None or status.error.blames_node)
        ):
            found.add(status.nodes)
    return tuple(sorted(found))


def _look(
    place: TrialDir, number: int, job: JobState | None, submission: Submission | None, now: float, lost_after_s: float
) -> TrialStatus:
    done = read_if_whole(place.done) if place.is_done else None
    last = done.get("attempt") if done else None
    attempts = tuple(read_attempt(attempt) for attempt in place.attempts if not isinstance(last, int) or attempt.number <= last)
    newest = attempts[-1] if attempts else None
    known = TrialEvidence(job, newest, submission.submitted_at if submission else None, now, lost_after_s)
    folders = {submission.job: submission.mark} if submission and submission.job and submission.mark else {}
    state, reason = ("done", "") if done is not None else state_of(known)
    given_up = starts.given_up_reason(place.run, job.job) if job is not None and state in ("failed", "stopped") else None
    state, reason = (state, reason) if given_up is None else ("failed", given_up)
    # Until a job has come to an attempt, its own log is what there is to read; while it waits, that of the attempt before.
    of_job = {"job": job.job} if job and known.is_untried and not (newest and known.is_queued) else None
    status = TrialStatus(
        number=number,
        trial=place.trial,
        state=state,
        reason=reason,
        job=job,
        attempts=attempts,
        # What a new attempt does not know yet is what the one before it knew.
        progress={key: value for attempt in attempts for key, value in attempt.progress.items() if value is not None},
        remaining_s=_left_s(newest, now) if newest and state == "running" else None,
        elapsed_s=done.get("seconds") if done else None,
        is_untried=done is None and known.is_untried,
        find_logs=partial(log_files, place.run, place.trial, of_job or (newest.description if newest else {}), folders),
    )
    return _with_cause(status, known, given_up=given_up is not None)


def _left_s(newest: AttemptStatus, now: float) -> float | None:
    left_s = newest.progress.get("seconds_left")
    return None if left_s is None else max(0.0, left_s - (now - newest.last_sign))


def _with_cause(status: TrialStatus, known: TrialEvidence, *, given_up: bool) -> TrialStatus:
    """Add what went wrong, where something did: of a job that ended before an attempt of it began, from its log alone."""
    end = known.newest.end if known.newest and not known.is_untried else None
    again = status.state == "requeued" and (end is None or end.outcome != "stopped")
    if status.state not in ("failed", "lost") and not again:
        return status
    if given_up:
        return status  # the batch script has named the cause
    logs = status.logs
    cause = find_cause(logs, end.error if end else None)
    reason = status.reason + "; it has left no log" * (known.is_untried and status.state == "failed" and not logs)
    return replace(status, reason=reason, error=cause)


def _lost_after(run: RunDir) -> float:
    """Return the seconds of silence after which a trial would have ended itself, had it been able to."""
    minutes = _HANG_MINUTES
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        minutes = float(yaml.safe_load(run.settings.read_text(encoding="utf-8"))["train"]["hang_minutes"])
    return minutes * 60 * 1.2
