"""Trials as one Slurm array through submitit, one task per rank under srun, and a report job after all of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ser_hpc.config.settings import ClusterSettings
from ser_hpc.errors import UserError
from ser_hpc.results.run_dir import RunDir, Trial

_REPORT_MIN = 20
_SIGNAL_BEFORE_END_S = 120


@dataclass(frozen=True, slots=True)
class Command:
    """What submitit pickles and every task of a job calls: an entry point's name and its arguments, no live objects."""

    module: str
    arguments: tuple[str, ...]

    def __call__(self) -> None:
        code = importlib.import_module(self.module).main(list(self.arguments))
        if code:
            sys.exit(code)


def parameters(cluster: ClusterSettings) -> dict[str, Any]:
    """submitit's parameters of the trials' array; memory and CPUs are always stated."""
    ranks = cluster.gpus_per_node if cluster.gpus_per_node is not None else 1
    extra = {"account": cluster.account, "qos": cluster.qos}
    return {
        "partition": cluster.partition,
        "nodes": cluster.nodes,
        "ntasks_per_node": max(1, ranks),
        "gpus_per_node": ranks or None,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{cluster.mem_gb_per_task * max(1, ranks)}G",
        "time": cluster.time_min,
        "signal_delay_s": _SIGNAL_BEFORE_END_S,
        "stderr_to_stdout": True,
        # srun does not inherit these from sbatch, and a task that dies must end its fellows, who would wait for it for ever.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cluster.cpus_per_task}"],
        "additional_parameters": {name: value for name, value in extra.items() if value},
    } | ({"array_parallelism": cluster.parallel} if cluster.parallel else {})


def submit(run: RunDir, trials: Sequence[Trial], cluster: ClusterSettings) -> tuple[list[str], str]:
    """Submit the array and the report; returns the trials' job ids and the report's. Raises UserError with Slurm's words."""
    import submitit

    folder = (run.path / "jobs").resolve()
    here = RunDir(run.path.resolve())
    try:
        executor = submitit.SlurmExecutor(folder=folder / "trials", max_num_timeout=1000)
        executor.update_parameters(job_name=f"ser-{run.path.name}", **_present(parameters(cluster)))
        jobs = executor.map_array(_call, [_train(here, trial) for trial in trials])
        array = jobs[0].job_id.split("_")[0]
        report = submitit.SlurmExecutor(folder=folder / "report")
        report.update_parameters(
            job_name=f"report-{run.path.name}", **_present(report_parameters(cluster, f"afterany:{array}"))
        )
        report_job = report.submit(Command("ser_hpc.report", (str(here.path),)))
    except (submitit.core.utils.FailedJobError, RuntimeError, OSError) as error:
        raise UserError(f"Slurm refused the jobs: {error}") from error
    return [job.job_id for job in jobs], report_job.job_id


def report_parameters(cluster: ClusterSettings, dependency: str) -> dict[str, Any]:
    """After the array, whatever became of it (`afterany`): the report names what is missing."""
    extra = {"account": cluster.account, "qos": cluster.qos}
    return {
        "partition": cluster.partition,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 1,
        "mem": "4G",
        "time": _REPORT_MIN,
        "dependency": dependency,
        "additional_parameters": {name: value for name, value in extra.items() if value},
    }


def _train(run: RunDir, trial: Trial) -> Command:
    return Command("ser_hpc.train", ("--run-dir", str(run.path), "--fold", str(trial.fold), "--seed", str(trial.seed)))


def _call(command: Command) -> None:
    command()


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
