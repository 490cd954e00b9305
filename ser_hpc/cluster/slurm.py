"""Trials as one Slurm array through submitit, one task per rank under srun, and a report job after all of them.

Where several trials share a job (`trials_per_gpu`), it has one task, which runs them side by side as this machine would.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ser_hpc import console
from ser_hpc.cluster import batch
from ser_hpc.cluster.jobs import Submission
from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.config.sbatch import Value, of_all_jobs
from ser_hpc.errors import UserError
from ser_hpc.results.run_dir import RunDir, Trial

REPORT_MIN, REPORT_MEM_GB = 20, 4


@dataclass(frozen=True, slots=True)
class Command:
    """What submitit pickles and every task of a job calls: an entry point's name and its arguments, no live objects."""

    module: str
    arguments: tuple[str, ...]

    def __call__(self) -> None:
        main = importlib.import_module(self.module).main
        # Not an exception, of which submitit would make exit code 1: the batch script goes by the code.
        sys.exit(console.exit_code(lambda: int(main(list(self.arguments)))))


def parameters(cluster: ClusterSettings, setup: Sequence[str] = ()) -> dict[str, Any]:
    """submitit's parameters of the trials' jobs; memory and CPUs always stated. `setup`: shell lines after the profile's."""
    ranks = max(1, gpus_per_node(cluster))
    tasks = 1 if cluster.trials_per_gpu > 1 else ranks
    cpus = cluster.cpus_per_gpu * ranks // tasks
    options, gpus = dict(cluster.sbatch), _gpus(cluster)
    if "gres" in gpus and (others := options.pop("gres", None)):
        gpus["gres"] += f",{others}"
    return _common(cluster, setup, options) | {
        "partition": cluster.site_name(cluster.partition),
        "nodes": cluster.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": cpus,
        "mem": f"{cluster.mem_gb_per_gpu * ranks}G",
        "time": cluster.time_min,
        "constraint": cluster.constraint,
        "signal_delay_s": cluster.stop_before_end_s,
        # srun does not inherit these from sbatch, and a task that dies must end its fellows, who would wait for it for ever.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}", *cluster.srun_args],
        "array_parallelism": cluster.parallel,
        **gpus,
    }


def report_parameters(cluster: ClusterSettings, dependency: str | None, setup: Sequence[str] = ()) -> dict[str, Any]:
    """After the array, whatever became of it (`afterany`): the report names what is missing."""
    options = of_all_jobs(cluster.sbatch)
    if cluster.report_partition:
        options.pop("reservation", None)  # it is of the trials' nodes
    return _common(cluster, setup, options) | {
        "partition": cluster.site_name(cluster.report_partition or cluster.partition),
        "constraint": None if cluster.report_partition else cluster.constraint,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 1,
        "mem": f"{REPORT_MEM_GB}G",
        "time": REPORT_MIN,
        "dependency": dependency,
    }


def gpus_per_node(cluster: ClusterSettings) -> int:
    return 1 if cluster.gpus_per_node is None else cluster.gpus_per_node


def scripts(run: RunDir, num_jobs: int, cluster: ClusterSettings, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and exact text of the batch scripts of `num_jobs` trials and of their report, as `submit` hands them to sbatch.

    ARRAY_JOB_ID stands for the number that Slurm will give the trials' job. Writes nothing.
    """
    trials = trials_executor(run, cluster, _setup(run, cluster, environment))
    report = report_executor(run, cluster, "afterany:ARRAY_JOB_ID", batch.exports(environment))
    if num_jobs > 1:  # submitit submits a single trial as a plain job
        trials.parameters["map_count"] = num_jobs
    return [
        (name, executor._make_submission_file_text(executor._submitit_command_str, ""))
        for name, executor in (("trials", trials), ("report", report))
    ]


def trials_executor(run: RunDir, cluster: ClusterSettings, setup: Sequence[str] = ()) -> Any:
    """submitit's executor of the trials, ready to submit."""
    return _executor(run, "trials", f"ser-{run.path.name}", cluster, parameters(cluster, setup))


def report_executor(run: RunDir, cluster: ClusterSettings, dependency: str | None, setup: Sequence[str] = ()) -> Any:
    """submitit's executor of the report, ready to submit."""
    return _executor(run, "report", f"report-{run.path.name}", cluster, report_parameters(cluster, dependency, setup))


def submit(
    run: RunDir, elements: Sequence[Sequence[Trial]], cluster: ClusterSettings, environment: Mapping[str, str]
) -> Submission:
    """Submit one array, an element for each group of trials that share a job.

    `environment`: variables under which the jobs' Python runs. Raises UserError with Slurm's words.
    """
    here = RunDir(run.path.resolve())
    with slurms_words():
        executor = trials_executor(here, cluster, _setup(here, cluster, environment))
        jobs = executor.map_array(_call, [_train(here, trials, cluster) for trials in elements])
    array = jobs[0].job_id.split("_")[0]
    return Submission(array, None, time.time(), tuple(map(tuple, elements)), environment.get("SER_HPC_CODE"))


def submit_report(run: RunDir, after: Sequence[str], cluster: ClusterSettings, environment: Mapping[str, str]) -> str:
    """Submit the report; returns its job's id. `afterany` these jobs, whatever became of them: it names what is missing."""
    here = RunDir(run.path.resolve())
    with slurms_words():
        executor = report_executor(here, cluster, "afterany:" + ":".join(after), batch.exports(environment))
        return str(executor.submit(Command("ser_hpc.report", (str(here.path),))).job_id)


@contextmanager
def slurms_words() -> Iterator[None]:
    import submitit

    try:
        yield
    except (submitit.core.utils.FailedJobError, RuntimeError, OSError) as error:
        raise UserError(f"Slurm refused the jobs: {error}") from error


def _setup(run: RunDir, cluster: ClusterSettings, environment: Mapping[str, str]) -> list[str]:
    return [*batch.exports(environment), batch.start_again(cluster.stop_before_end_s, run.jobs)]


def _executor(run: RunDir, folder: str, name: str, cluster: ClusterSettings, values: dict[str, Any]) -> Any:
    import submitit

    # submitit's own limit of restarts is out of the way: a trial knows when to give up.
    executor = submitit.SlurmExecutor(folder=run.jobs.resolve() / folder, max_num_timeout=1000, python=cluster.python)
    executor.update_parameters(job_name=name, wckey=None, **present(values))  # not submitit's own, which sites may refuse
    return executor


def _common(cluster: ClusterSettings, setup: Sequence[str], options: Mapping[str, Value]) -> dict[str, Any]:
    """`options`: of sbatch, beside those that are settings of their own."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return {
        "account": cluster.account,
        "qos": cluster.qos,
        "exclude": ",".join(cluster.exclude) or None,
        "setup": [*cluster.setup, *setup] or None,
        "stderr_to_stdout": True,
        "srun_args": list(cluster.srun_args),
        "additional_parameters": {"requeue": True, **given},
    }


def _gpus(cluster: ClusterSettings) -> dict[str, Any]:
    """Of several types the first: preflight.choose_gpus has left one."""
    count, kind = gpus_per_node(cluster), cluster.gpu_types[0]
    what = f"{kind}:{count}" if kind else count
    if not count:
        return {}
    if cluster.gpu_request == "gpus-per-node":
        return {"gpus_per_node": what}
    return {"gres": f"gpu:{what}"}


def _train(run: RunDir, trials: Sequence[Trial], cluster: ClusterSettings) -> Command:
    names = [f"{trial.seed}:{trial.fold}" for trial in trials]
    together = ["--side-by-side"] if cluster.trials_per_gpu > 1 else []
    return Command("ser_hpc.train", ("--run-dir", str(run.path), *together, "--trial", *names))


def _call(command: Command) -> None:
    command()


def present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
