"""Submit the jobs that work on a sweep: an array, each of whose elements asks for one configuration after another.

They are requeued at their time limit, when preempted and when their node is lost, as trials' jobs are.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
import uuid

from rich.console import Console

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.launchers.job_state import JobState
from ser_hpc.launchers.slurm import inherited_variables, jobs, requeue_script, site_checks, submit
from ser_hpc.launchers.slurm.queue import SlurmError, cluster_name, squeue
from ser_hpc.launchers.slurm.submissions import Submission, read_submissions
from ser_hpc.launchers.slurm.submit_once import submit_once
from ser_hpc.run import snapshot
from ser_hpc.run.sweep_dir import SweepDir

WORKERS = 8


def submit_workers(
    sweep: SweepDir, left: int, cluster: ClusterSettings, code: snapshot.CodeSnapshot, out: Console, lock: int, *, dry_run: bool
) -> None:
    """Submit as many jobs as are asked for and have something to do, less those that are queued or running.

    `left`: configurations that have not ended; `lock`: descriptor of the sweep's lock, which the caller holds. Raises UserError
    where the site would not take them.
    """
    if cluster.nodes > 1:
        raise UserError(f"cluster.nodes={cluster.nodes}: each job of a sweep trains configurations on one node; leave it out")
    run = sweep.as_run
    for line in () if dry_run else jobs.settle_submissions(run):
        out.print(line)
    active = active_workers(sweep)
    many = min(left, cluster.max_parallel_trials or WORKERS) - len(active)
    if active:
        out.print(f"{counted(len(active), 'job')} queued or running already: {listed([job.job for job in active])}.")
    if many <= 0:
        return
    cluster, notes = site_checks.choose_gpus(inherited_variables.drop_inherited(cluster, out))
    cluster = cluster.model_copy(update={"max_parallel_trials": None})
    mark = uuid.uuid4().hex[:8]
    script = _script(sweep, mark, many, cluster, code)
    notes += site_checks.check_trial_jobs(cluster, sweep.runs, 0.0, [("trials", script)])
    for note in notes:
        out.print(f"note: {note}", soft_wrap=True)
    if dry_run:
        out.print(f"{script}\n\n{counted(many, 'job')} as above would be submitted.", soft_wrap=True)
        return
    submission = Submission(
        "trials",
        _name(sweep, mark),
        time.time(),
        dict.fromkeys(range(many), ()),
        mark=mark,
        outcome="asked",
        cluster=cluster_name(),
        host=socket.gethostname(),
        code=code.digest,
        settings=cluster.model_dump(mode="json", exclude_defaults=True),
    )
    done = submit_once(run, submission, script, lock)
    out.print(
        f"Submitted {counted(many, 'job')} as array {done.job}, each of which asks for one configuration after another; the "
        f"last one to end reports the one that is chosen.\nTo stop: scancel {done.job}; their logs: {run.jobs}/{mark}",
        soft_wrap=True,
    )


def active_workers(sweep: SweepDir) -> list[JobState]:
    """Return the sweep's jobs that are queued or running. Raises UserError if that cannot be asked."""
    known = read_submissions(sweep.as_run)
    if not known:
        return []
    names = {submission.name for submission in known}
    try:
        return [job for job in squeue({os.getuid()}) if job.is_active and job.name in names]
    except SlurmError as error:
        raise UserError(f"whether jobs work on {sweep.path} already cannot be asked: {error}") from error


def _name(sweep: SweepDir, mark: str) -> str:
    return f"sweep-{sweep.path.name}-{mark}"


def _script(sweep: SweepDir, mark: str, many: int, cluster: ClusterSettings, code: snapshot.CodeSnapshot) -> str:
    run = sweep.as_run
    folder = run.jobs.resolve() / mark
    again = requeue_script.requeue_lines(
        cluster.stop_before_end_s, run.jobs, max_starts=cluster.max_starts_without_progress, leaves_marks=True
    )
    setup = requeue_script.export_lines(snapshot.snapshot_environment(code))
    values = submit.trial_parameters(cluster, setup, [*requeue_script.element(folder), again], shared=True)
    command = f"-u -m ser_hpc.sweep --work {shlex.quote(str(sweep.path.resolve()))}"
    return submit.batch_script(folder / "%a", _name(sweep, mark), cluster, values, many, command)
