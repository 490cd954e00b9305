"""Put a run's trials into Slurm's queue, as many as fit, and their report after them; the launcher calls it on a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich.console import Console

from ser_hpc.config import schema
from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.core.errors import UserError, counted
from ser_hpc.launchers.estimate import estimate_cost
from ser_hpc.launchers.slurm import jobs, site_checks, submit, user_limits
from ser_hpc.launchers.slurm.queue import JobState, SlurmError
from ser_hpc.launchers.slurm.submissions import Submission, read_submissions
from ser_hpc.launchers.slurm.submit_once import RefusedError
from ser_hpc.run.create_run import write_run
from ser_hpc.run.experiment import Experiment
from ser_hpc.run.run_dir import RunDir, Trial

_OF_A_SITE = {"profile", "kind", "scratch", "partitions"}  # settings that shape no job by themselves


def enqueue_trials(
    experiment: Experiment,
    todo: Sequence[Trial],
    held: Mapping[Trial, JobState],
    environment: Mapping[str, str],
    lock: int,
    out: Console,
    *,
    own_test: bool = True,
) -> list[Trial]:
    """Submit trials and their report; return the trials for which there is no room in the queue now.

    `held`: trials that are queued or running; `lock`: descriptor of the run's lock; `own_test`: as in `check_trial_jobs`.
    Raises UserError with everything that is in the way, or with Slurm's message.
    """
    run = experiment.run
    cluster, notes = site_checks.choose_gpus(experiment.settings.cluster)
    groups = [todo[start : start + cluster.trials_per_gpu] for start in range(0, len(todo), cluster.trials_per_gpu)]
    fit = _fitting(cluster, len(groups))
    size = min(fit, user_limits.max_array_size() or fit)
    if size:
        scripts = submit.batch_scripts(run, size, cluster, environment)
        needed = estimate_cost(experiment, on_gpu=True).disk_peak
        for note in (*notes, *site_checks.check_trial_jobs(cluster, run.path, needed, scripts, own_test=own_test)):
            out.print(f"note: {note}", soft_wrap=True)
        write_run(experiment)
    made = _arrays(run, groups[:fit], size, cluster, environment, lock, must=not held)
    queued = {trial for submission in made for trial in submission.trials}
    left = [trial for trial in todo if trial not in queued]
    if made:
        what = counted(len(queued), "trial") + (
            f" in {counted(sum(len(m.elements) for m in made), 'job')}" * (cluster.trials_per_gpu > 1)
        )
        out.print(f"Submitted {what} as job {', '.join(str(submission.job) for submission in made)}.")
    if left:
        out.print(
            f"{counted(len(left), 'trial')} not submitted: no more of your jobs fit into the queue now. Give the same command "
            "again when some have ended, or with --wait, which feeds them in as others end."
        )
    _report_after(experiment, {job.array for job in held.values()} | {str(m.job) for m in made}, environment, lock, out)
    out.print(f"Follow them: python -m ser_hpc.status {shlex.quote(str(run.path))} --watch", soft_wrap=True)
    out.print(f"Report at any time: python -m ser_hpc.report {shlex.quote(str(run.path))}", soft_wrap=True)
    return left


def add_missing_report(
    experiment: Experiment, held: Mapping[Trial, JobState], environment: Mapping[str, str], lock: int, out: Console
) -> None:
    """Submit the report of trials that are queued or running, where none waits for them."""
    try:
        if held and not jobs.active_reports(experiment.run):
            _report_after(experiment, {job.array for job in held.values()}, environment, lock, out)
    except SlurmError as error:
        out.print(f"note: whether a report waits for these trials cannot be asked ({error})")


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


def _arrays(
    run: RunDir,
    groups: Sequence[Sequence[Trial]],
    size: int,
    cluster: ClusterSettings,
    environment: Mapping[str, str],
    lock: int,
    *,
    must: bool,
) -> list[Submission]:
    """Submit arrays of at most `size` elements, smaller where Slurm finds those too many. `must`: one at least, or an error."""
    made: list[Submission] = []
    start = 0
    while start < len(groups):
        part = groups[start : start + size]
        try:
            made.append(submit.submit_trials(run, part, cluster, environment, lock))
            start += len(part)
        except RefusedError as error:
            if error.too_many and len(part) > 1:
                size = len(part) // 2
            elif error.too_many and (made or not must):
                break
            else:
                raise
    return made


def _report_after(
    experiment: Experiment, arrays: Collection[str], environment: Mapping[str, str], lock: int, out: Console
) -> None:
    """Submit the report after these arrays; where Slurm does not take it, the trials are queued all the same."""
    if not arrays:
        return
    try:
        after = sorted(arrays, key=int)
        earlier = jobs.active_reports(experiment.run)
        report = submit.submit_report(experiment.run, after, experiment.settings.cluster, environment, lock)
        jobs.cancel_waiting(earlier)  # the new one waits for all that they wait for
        out.print(f"The report follows them as job {report.job}.")
    except (UserError, SlurmError) as error:
        out.print(
            f"The trials are queued, but their report is not ({error}). The same command, given later, adds it; or see below.",
            soft_wrap=True,
        )
