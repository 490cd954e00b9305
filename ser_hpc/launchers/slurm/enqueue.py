"""Put a run's trials into Slurm's queue, as many as fit, and their report after them; the launcher calls it on a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ser_hpc.config import schema
from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.config.settings import Settings
from ser_hpc.core.errors import UserError, counted
from ser_hpc.launchers.estimate import estimate_cost
from ser_hpc.launchers.launcher import Batch
from ser_hpc.launchers.slurm import jobs, site_checks, submit, user_limits
from ser_hpc.launchers.slurm.queue import SlurmError
from ser_hpc.launchers.slurm.submissions import Submission, read_submissions
from ser_hpc.launchers.slurm.submit_once import RefusedError
from ser_hpc.run.run_dir import RunDir, Trial

_OF_A_SITE = {"profile", "kind", "scratch", "partitions"}  # settings that shape no job by themselves


@dataclass(frozen=True, slots=True)
class Offer:
    """What of a batch the queue has room for now: the first `fit` of its `groups` of trials that share a job, in arrays of
    `size` at most. `cluster`: with the type of GPU that was chosen; `shared`: whether jobs hold several trials."""

    cluster: ClusterSettings
    groups: Sequence[Sequence[Trial]]
    fit: int
    size: int
    shared: bool


def check_offer(batch: Batch, *, own_test: bool = True) -> tuple[Offer, list[str]]:
    """Find how many trials fit into the queue; return notes, too, on what the site says to their scripts.

    `own_test`: as in `check_trial_jobs`.

    Raises UserError with everything that is in the way.
    """
    run, todo = batch.run, batch.todo
    cluster, notes = site_checks.choose_gpus(batch.experiment.settings.cluster)
    groups, shared = group_trials(batch.settings, todo), batch.settings.trials_per_job > 1
    fit = _fitting(cluster, len(groups))
    size = min(fit, user_limits.max_array_size() or fit)
    if size:
        scripts = submit.batch_scripts(run, size, cluster, batch.environment, shared=shared)
        needed = estimate_cost(batch.experiment, on_gpu=True).disk_peak
        return Offer(cluster, groups, fit, size, shared), [
            *notes,
            *site_checks.check_trial_jobs(cluster, run.path, needed, scripts, own_test=own_test),
        ]
    return Offer(cluster, groups, fit, size, shared), []


def group_trials(settings: Settings, todo: Sequence[Trial]) -> list[Sequence[Trial]]:
    """Divide trials into those that share a job."""
    size = settings.trials_per_job
    return [todo[start : start + size] for start in range(0, len(todo), size)]


def enqueue_trials(batch: Batch, offer: Offer) -> list[Trial]:
    """Submit trials and their report; return the trials for which there is no room in the queue now.

    Raises UserError with Slurm's message.
    """
    run, out = batch.run, batch.out
    made = _arrays(batch, offer)
    queued = {trial for submission in made for trial in submission.trials}
    left = [trial for trial in batch.todo if trial not in queued]
    if made:
        what = counted(len(queued), "trial") + (f" in {counted(sum(len(m.elements) for m in made), 'job')}" * offer.shared)
        out.print(f"Submitted {what} as job {', '.join(str(submission.job) for submission in made)}.")
    if left:
        out.print(
            f"{counted(len(left), 'trial')} not submitted: no more of your jobs fit into the queue now. Give the same command "
            "again when some have ended, or with --wait, which feeds them in as others end."
        )
    _report_after(batch, {job.array for job in batch.held.values()} | {str(m.job) for m in made})
    out.print(f"Follow them: python -m ser_hpc.status {shlex.quote(str(run.path))} --watch", soft_wrap=True)
    out.print(f"Report at any time: python -m ser_hpc.report {shlex.quote(str(run.path))}", soft_wrap=True)
    return left


def add_missing_report(batch: Batch) -> None:
    """Submit the report of trials that are queued or running, where none waits for them."""
    try:
        if not jobs.active_reports(batch.run):
            _report_after(batch, {job.array for job in batch.held.values()})
    except SlurmError as error:
        batch.out.print(f"note: whether a report waits for these trials cannot be asked ({error})")


def not_applied(run: RunDir, held: Collection[Trial], cluster: ClusterSettings) -> Iterator[str]:
    """Yield a line per setting of queued or running jobs that differs from the one given now: Slurm keeps what it was given."""
    now = cluster.model_dump(mode="json", exclude_defaults=True)
    reported = set()
    for submission in read_submissions(run):
        if submission.mark is None or submission.outcome == "void" or not set(submission.trials) & set(held):
            continue
        submitted = dict(submission.settings)
        schema.rename({"cluster": submitted}, 1)  # an earlier version may have written them
        for name in sorted({*submitted, *now} - _OF_A_SITE):
            before = submitted.get(name)
            if before != now.get(name) and (name, str(before)) not in reported:
                reported.add((name, str(before)))
                given, theirs = (("its default" if value is None else value) for value in (now.get(name), before))
                yield f"not applied to jobs that are queued or running: cluster.{name}={given} (theirs: {theirs})"


def _fitting(cluster: ClusterSettings, wanted: int) -> int:
    """Return how many of `wanted` jobs fit into the queue now, beside their report."""
    room = user_limits.submit_room(cluster)
    return wanted if room is None else max(0, min(wanted, room - 1))


def _arrays(batch: Batch, offer: Offer) -> list[Submission]:
    """Submit arrays of the size offered, smaller where Slurm finds those too many; one at least, or an error, unless jobs of
    the run are queued or running already."""
    groups, size = offer.groups[: offer.fit], offer.size
    made: list[Submission] = []
    start = 0
    while start < len(groups):
        part = groups[start : start + size]
        try:
            made.append(
                submit.submit_trials(batch.run, part, offer.cluster, batch.environment, _lock(batch), shared=offer.shared)
            )
            start += len(part)
        except RefusedError as error:
            if error.too_many and len(part) > 1:
                size = len(part) // 2
            elif error.too_many and (made or batch.held):
                break
            else:
                raise
    return made


def _report_after(batch: Batch, arrays: Collection[str]) -> None:
    """Submit the report after these arrays; where Slurm does not take it, the trials are queued all the same."""
    if not arrays:
        return
    run, cluster = batch.run, batch.experiment.settings.cluster
    try:
        after = sorted(arrays, key=int)
        earlier = jobs.active_reports(run)
        report = submit.submit_report(run, after, cluster, batch.environment, _lock(batch))
        jobs.cancel_waiting(earlier)  # the new one waits for all that they wait for
        batch.out.print(f"The report follows them as job {report.job}.")
    except (UserError, SlurmError) as error:
        batch.out.print(
            f"The trials are queued, but their report is not ({error}). The same command, given later, adds it; or see below.",
            soft_wrap=True,
        )


def _lock(batch: Batch) -> int:
    assert batch.lock is not None, "submitted under the run's lock, which sbatch holds too"
    return batch.lock
