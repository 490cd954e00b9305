"""Submit trials as a Slurm array, one task per rank under srun, and a report job after all of them; scripts are submitit's.

Where several trials share a job (`trials_per_gpu`, `trials_per_job`), it has one task, which runs them as this machine would.
"""

from __future__ import annotations

import shlex
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.config.sbatch import Value, shared_options
from ser_hpc.launchers.slurm import requeue_script
from ser_hpc.launchers.slurm.queue import cluster_name
from ser_hpc.launchers.slurm.submissions import Submission
from ser_hpc.launchers.slurm.submit_once import submit_once
from ser_hpc.run import snapshot
from ser_hpc.run.run_dir import RunDir, Trial

REPORT_MIN, REPORT_MEM_GB = 20, 4


def trial_parameters(
    cluster: ClusterSettings, setup: Sequence[str] = (), first: Sequence[str] = (), *, shared: bool = False
) -> dict[str, Any]:
    """Return submitit's parameters of the trials' jobs; memory and CPUs always stated.

    `first`, `setup`: shell lines before and after the profile's; `shared`: a job holds several trials.
    """
    ranks = max(1, gpus_per_node(cluster))
    tasks = 1 if shared else ranks
    cpus = cluster.cpus_per_gpu * ranks // tasks
    options, gpus = dict(cluster.sbatch), _gpus(cluster)
    if "gres" in gpus and (others := options.pop("gres", None)):
        gpus["gres"] += f",{others}"
    return _common(cluster, setup, options, first) | {
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
        "array_parallelism": cluster.max_parallel_trials,
        **gpus,
    }


def report_parameters(cluster: ClusterSettings, dependency: str | None, setup: Sequence[str] = ()) -> dict[str, Any]:
    """Return submitit's parameters of the report job. It follows the array whatever became of it, and names what is missing."""
    options = shared_options(cluster.sbatch)
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
    """Return the GPUs of a job on each node; 1 where the setting is open."""
    return 1 if cluster.gpus_per_node is None else cluster.gpus_per_node


def batch_scripts(
    run: RunDir, num_jobs: int, cluster: ClusterSettings, environment: Mapping[str, str], *, shared: bool = False
) -> list[tuple[str, str]]:
    """Return name and exact text of the batch scripts of `num_jobs` jobs of trials and of their report, as they are handed to
    sbatch; `shared`: each job holds several trials.

    ARRAY_JOB_ID stands for the number that Slurm will give the trials' job, THE_MARK for what makes its names its own.
    Writes nothing.
    """
    here = RunDir(run.path.resolve())
    dependency = "afterany:ARRAY_JOB_ID"
    return [
        ("trials", _trials_script(here, "THE_MARK", num_jobs, cluster, environment, shared=shared)),
        ("report", _report_script(here, "THE_MARK", dependency, cluster, environment)),
    ]


def submit_trials(
    run: RunDir,
    elements: Sequence[Sequence[Trial]],
    cluster: ClusterSettings,
    environment: Mapping[str, str],
    lock: int,
    *,
    shared: bool = False,
) -> Submission:
    """Submit one array, an element for each group of trials that share a job (if any do: `shared`); see `submit_once`.

    `environment`: variables under which the jobs' Python runs; `lock`: descriptor of the run's lock. Raises UserError.
    """
    here = RunDir(run.path.resolve())
    submission = _new_submission(here, "trials", cluster, environment, dict(enumerate(map(tuple, elements))))
    script = _trials_script(here, str(submission.mark), len(elements), cluster, environment, shared=shared)
    return submit_once(here, submission, script, lock)


def submit_report(
    run: RunDir, after: Sequence[str], cluster: ClusterSettings, environment: Mapping[str, str], lock: int
) -> Submission:
    """Submit the report, `afterany` these jobs: whatever became of them, it names what is missing. Raises UserError."""
    here = RunDir(run.path.resolve())
    submission = _new_submission(here, "report", cluster, environment, {})
    dependency = "afterany:" + ":".join(after)
    return submit_once(here, submission, _report_script(here, str(submission.mark), dependency, cluster, environment), lock)


def batch_script(folder: Path, name: str, cluster: ClusterSettings, values: dict[str, Any], num_jobs: int, command: str) -> str:
    """Return the batch script of an array of `num_jobs` that run a Python command. `values`: as of `trial_parameters`."""
    executor = _executor(folder, name, cluster, values)
    executor.parameters["map_count"] = num_jobs
    return _script(executor, command)


def _new_submission(
    run: RunDir,
    kind: Literal["trials", "report"],
    cluster: ClusterSettings,
    environment: Mapping[str, str],
    elements: Mapping[int, tuple[Trial, ...]],
) -> Submission:
    mark = uuid.uuid4().hex[:8]
    return Submission(
        kind,
        _name(run, kind, mark),
        time.time(),
        elements,
        mark=mark,
        outcome="asked",
        cluster=cluster_name(),
        host=socket.gethostname(),
        code=environment.get("SER_HPC_CODE"),
        settings=cluster.model_dump(mode="json", exclude_defaults=True),
    )


def _name(run: RunDir, kind: str, mark: str) -> str:
    """Return the name of a submission's jobs, by which they are found in the queue even if nobody recorded their number."""
    return f"{'ser' if kind == 'trials' else 'report'}-{run.path.name}-{mark}"


def _trials_script(
    run: RunDir, mark: str, num_jobs: int, cluster: ClusterSettings, environment: Mapping[str, str], *, shared: bool
) -> str:
    folder = run.jobs / mark
    marks = snapshot.leaves_marks(run, environment.get("SER_HPC_CODE"))
    most = cluster.max_starts_without_progress
    again = requeue_script.requeue_lines(cluster.stop_before_end_s, run.jobs, max_starts=most, leaves_marks=marks)
    # The trap stands before the profile's lines: also one that leaves the shell is this node's fault.
    setup, first = requeue_script.export_lines(environment), [*requeue_script.element(folder), again]
    values = trial_parameters(cluster, setup, first, shared=shared)
    together = " --side-by-side" * shared
    command = f"-u -m ser_hpc.train --run-dir {shlex.quote(str(run.path))}{together} --trial $ser_trials"
    return batch_script(folder / "%a", _name(run, "trials", mark), cluster, values, num_jobs, command)


def _report_script(run: RunDir, mark: str, dependency: str, cluster: ClusterSettings, environment: Mapping[str, str]) -> str:
    values = report_parameters(cluster, dependency, requeue_script.export_lines(environment))
    executor = _executor(run.jobs / mark, _name(run, "report", mark), cluster, values)
    return _script(executor, f"-u -m ser_hpc.report {shlex.quote(str(run.path))}")


def _script(executor: Any, arguments: str) -> str:
    """Return submitit's batch script around a Python command. Not around its own, which unpickles what the launcher writes
    after sbatch has answered: a launcher that is killed in between would leave jobs that find nothing to do."""
    return str(executor._make_submission_file_text(f"{executor.python} {arguments}", ""))


def _executor(folder: Path, name: str, cluster: ClusterSettings, values: dict[str, Any]) -> Any:
    import submitit

    executor = submitit.SlurmExecutor(folder=folder, python=cluster.python)
    executor.update_parameters(job_name=name, wckey=None, **without_nones(values))  # not submitit's own, which sites may refuse
    return executor


def _common(
    cluster: ClusterSettings, setup: Sequence[str], options: Mapping[str, Value], first: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the parameters that trials and report share. `options`: of sbatch, beside those that are settings of their own."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return {
        "account": cluster.account,
        "qos": cluster.qos,
        "exclude": ",".join(cluster.exclude) or None,
        "setup": [*first, *requeue_script.checked(cluster.setup), *setup, *requeue_script.refused(cluster.setup)] or None,
        "stderr_to_stdout": True,
        "srun_args": list(cluster.srun_args),
        "additional_parameters": {"requeue": True, **given},
    }


def _gpus(cluster: ClusterSettings) -> dict[str, Any]:
    """Return the request for GPUs; of several types the first: site_checks.choose_gpus has left one."""
    count, kind = gpus_per_node(cluster), cluster.gpu_types[0]
    what = f"{kind}:{count}" if kind else count
    if not count:
        return {}
    if cluster.gpu_request == "gpus-per-node":
        return {"gpus_per_node": what}
    return {"gres": f"gpu:{what}"}


def without_nones(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
