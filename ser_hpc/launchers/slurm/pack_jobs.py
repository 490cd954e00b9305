"""Submit packing as a Slurm array: each job packs a share of the shards, the last one to end completes the datasets.

    OUT.jobs/code/<hash>/     the code that the jobs run, so editing the checkout changes none of them
    OUT.jobs/logs/            submitit's files and the jobs' logs
    OUT.jobs/submitted.json   the newest array

A job that is preempted, loses its node or comes to its time limit is queued again by itself, and goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.config.load import load_settings
from ser_hpc.config.sbatch import shared_options
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.core.errors import UserError, counted
from ser_hpc.launchers import detect
from ser_hpc.launchers.slurm import inherited_variables, requeue_script, site_checks, submit
from ser_hpc.launchers.slurm.queue import SlurmError, squeue
from ser_hpc.run import snapshot
from ser_hpc.run.run_dir import RunDir

WORKERS, JOBS = 8, 8
_GB_PER_WORKER = 2


@dataclass(frozen=True, slots=True)
class PackCommand:
    """The callable that submitit pickles: `python -m ser_hpc.pack` with these arguments, no live objects."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        main = importlib.import_module("ser_hpc.pack").main
        # Not an exception, of which submitit would make exit code 1: the job's exit code says what became of it.
        sys.exit(cli.run_to_exit_code(lambda: int(main(list(self.arguments)))))

    def checkpoint(self) -> Any:
        """Return what is to be queued instead; submitit calls it before the time limit, or when the job is preempted."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def packing_settings(choices: Mapping[str, str | None], workers: int) -> ClusterSettings:
    """Return the settings of packing jobs, without GPUs: `choices`, by name of a `cluster` setting, over the site's profile."""
    cluster = load_settings(None, [f"cluster.{name}={value}" for name, value in choices.items() if value is not None]).cluster
    cpu_only = {"gpus_per_node": 0, "gpu_type": None, "constraint": None, "trials_per_gpu": 1, "nodes": 1}
    per_job = {"cpus_per_gpu": workers, "mem_gb_per_gpu": _GB_PER_WORKER * workers}
    unused = {"report_partition": None, "max_parallel_trials": None}
    return cluster.model_copy(update=cpu_only | per_job | unused | {"sbatch": shared_options(cluster.sbatch)})


def submit_packing(
    arguments: Sequence[str],
    out: Path,
    num_jobs: int,
    cluster: ClusterSettings,
    screen: Console,
    *,
    dry_run: bool,
    own_test: bool = True,
) -> bool:
    """Submit an array of `num_jobs` that pack with these arguments; return False if there is no Slurm here.

    `dry_run`: only show it; `own_test`: Slurm's own test must be passed.
    Raises UserError if the site would not run the jobs, if an earlier array still packs there, or with Slurm's message.
    """
    launcher, _ = detect.choose_launcher(cluster.kind)
    if launcher == "local":
        return False
    if num_jobs < 1:
        raise UserError(f"--jobs {num_jobs}: give at least 1")
    cluster = inherited_variables.drop_inherited(cluster, screen)
    folder = out.resolve().with_name(f"{out.resolve().name}.jobs")
    home = RunDir(folder)  # of which only its `code` is used
    _refuse_second(out)
    environment = snapshot.snapshot_environment(snapshot.CodeSnapshot(home.code / snapshot.present_digest()))
    script = _script(_executor(folder, out, cluster, environment), num_jobs)
    for note in site_checks.check_packing_jobs(cluster, num_jobs, folder, script, own_test=own_test):
        screen.print(f"note: {note}")
    if dry_run:
        screen.print(f"{script}\n\nNothing was submitted: {counted(num_jobs, 'job')} as above would be.")
        return True
    parts = [PackCommand((*arguments, "--part", f"{number}/{num_jobs}")) for number in range(num_jobs)]
    environment = snapshot.snapshot_environment(snapshot.take_snapshot(home))
    with _explain_slurm_errors():
        executor = _executor(folder, out, cluster, environment)
        with executor.batch():
            jobs = [executor.submit(part) for part in parts]
    array = str(jobs[0].job_id).split("_")[0]
    write_json(folder / "submitted.json", {"array": array, "jobs": num_jobs, "submitted_at": time.time()})
    screen.print(
        f"Submitted {counted(num_jobs, 'job')} as array {array}; the last one to end writes the dataset.json of what is "
        "complete.\n"
        f"Follow them: squeue -j {array}; their logs: {folder}/logs/{array}_*_log.out\n"
        "Should one fail, mend what its log says and give the same command again: only what is missing is packed.",
    )
    return True


@contextmanager
def _explain_slurm_errors() -> Iterator[None]:
    """Turn submitit's errors into UserError."""
    import submitit

    try:
        yield
    except (submitit.core.utils.FailedJobError, RuntimeError, OSError) as error:
        raise UserError(f"Slurm refused the jobs: {error}") from error


def _refuse_second(out: Path) -> None:
    """Refuse a second array, which would do the same work twice. By name: a launcher may be killed before its record."""
    try:
        active = [job for job in squeue({os.getuid()}) if job.is_active and job.name == _name(out)]
    except SlurmError as error:
        raise UserError(f"whether jobs pack into {out} already cannot be asked: {error}") from error
    if active:
        array, many = active[0].array, counted(len(active), "job")
        raise UserError(f"array {array} packs into {out} already (queued or running: {many}); see squeue -j {array}")


def _name(out: Path) -> str:
    """Return the name of the jobs that pack into a folder, and of no others."""
    place = out.resolve()
    return f"pack-{place.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"


def _executor(folder: Path, out: Path, cluster: ClusterSettings, environment: Mapping[str, str]) -> Any:
    import submitit

    # submitit's own limit of restarts is out of the way: each start packs some more.
    executor = submitit.SlurmExecutor(folder=folder / "logs", max_num_timeout=1000, python=cluster.python)
    parameters = submit.trial_parameters(cluster, requeue_script.export_lines(environment))
    executor.update_parameters(job_name=_name(out), wckey=None, **submit.without_nones(parameters))
    return executor


def _script(executor: Any, num_jobs: int) -> str:
    """Return the exact text that is handed to sbatch."""
    if num_jobs > 1:  # submitit submits a single job as no array
        executor.parameters["map_count"] = num_jobs
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))
