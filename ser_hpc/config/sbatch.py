"""Check the options of sbatch and srun that a site adds to those of the settings (`cluster.sbatch`, `cluster.srun_args`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from ser_hpc.config.section import Words

Value = str | int | float | bool | None

_LOGS = "logs lie in the run"
_RANKS = "a rank for each GPU: see cluster.gpus_per_node and cluster.nodes"
_MEMORY, _CORES = "see cluster.mem_gb_per_gpu", "see cluster.cpus_per_gpu"
_GPUS = "see cluster.gpus_per_node and cluster.gpu_type"
_REQUEUE = "jobs are always queued again where they did not end by themselves"
_ANSWER = "the launcher reads what sbatch answers"
_ELSEWHERE = "jobs are asked for where they were submitted: set SLURM_CLUSTERS"
_VARIABLES = "jobs run in the launcher's environment: see cluster.setup"
_SERVED = {  # options that the launcher gives itself, and what serves instead
    "account": "see cluster.account",
    "array": "one element for each trial: see cluster.max_parallel_trials",
    "chdir": "jobs run by full paths",
    "clusters": _ELSEWHERE,
    "constraint": "see cluster.constraint",
    "cpus-per-gpu": _CORES,
    "cpus-per-task": _CORES,
    "dependency": "the report waits for the trials",
    "error": _LOGS,
    "exclude": "see cluster.exclude",
    "export": _VARIABLES,
    "export-file": _VARIABLES,
    "gpus": _GPUS,
    "gpus-per-node": _GPUS,
    "gpus-per-socket": _GPUS,
    "gpus-per-task": _GPUS,
    "help": _ANSWER,
    "job-name": "see run.name",
    "kill-on-bad-exit": "it is always given",
    "mem": _MEMORY,
    "mem-per-cpu": _MEMORY,
    "mem-per-gpu": _MEMORY,
    "nodes": "see cluster.nodes",
    "no-requeue": _REQUEUE,
    "ntasks": _RANKS,
    "ntasks-per-core": _RANKS,
    "ntasks-per-gpu": _RANKS,
    "ntasks-per-node": _RANKS,
    "ntasks-per-socket": _RANKS,
    "open-mode": _LOGS,
    "output": _LOGS,
    "parsable": _ANSWER,
    "partition": "see cluster.partition and cluster.report_partition",
    "qos": "see cluster.qos",
    "quiet": _ANSWER,
    "requeue": _REQUEUE,
    "signal": "see cluster.stop_before_end_s",
    "test-only": "see --dry-run",
    "time": "see cluster.time_min",
    "usage": _ANSWER,
    "version": _ANSWER,
    "wait": "see --wait",
    "wrap": "see cluster.setup",
}
_SERVED_BY_SRUN = {"output", "error", "export", "cpus-per-task", "kill-on-bad-exit", "nodes", "ntasks", "ntasks-per-node"}
_SERVED_BY_SRUN |= {"ntasks-per-gpu", "mem", "mem-per-cpu", "mem-per-gpu", "time", "chdir", "open-mode"}
# They ask for hardware, licences or a place among the nodes, which a report or a packing job does not need.
_OF_TRIALS = {
    *("bb", "bbf", "contiguous", "core-spec", "cores-per-socket", "exclusive", "extra-node-info", "gres", "gres-flags", "hint"),
    *("licenses", "mem-bind", "mincpus", "network", "nodefile", "nodelist", "prefer", "sockets-per-node", "spread-job"),
    *("switches", "thread-spec", "threads-per-core", "time-min", "tmp", "tres-bind", "tres-per-task", "use-min-nodes"),
    *("gpu-bind", "gpu-freq"),
}


def shared_options(options: Mapping[str, Value]) -> dict[str, Value]:
    """Return those options that the report's and packing jobs are given as well."""
    return {name: value for name, value in options.items() if name not in _OF_TRIALS}


def _names(given: Any) -> Any:
    """Normalise option names: `mail_type` and `--mail-type` are mail-type."""
    if not isinstance(given, dict):
        return given
    return {str(name).removeprefix("--").replace("_", "-"): value for name, value in given.items()}


def _checked(options: dict[str, Value]) -> dict[str, Value]:
    problems = []
    for name, value in options.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            problems.append(f"{name!r} is no option of sbatch: write its long name, as comment, licenses or mail-type")
        elif name in _SERVED:
            problems.append(f"{name} cannot be given: {_SERVED[name]}")
        elif isinstance(value, str) and not value.isprintable():
            problems.append(f"{name}={value!r}: one line of plain characters, please")
        elif name == "gres" and re.search(r"(^|,)\s*(gres[/:])?gpu\b", str(value)):
            problems.append(f"gres={value} names GPUs: {_GPUS}, and cluster.gpu_request")
    if problems:
        raise ValueError("; ".join(problems))
    return options


def _checked_srun(arguments: Sequence[str]) -> Sequence[str]:
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--")
        if argument.startswith("--") and name in _SERVED_BY_SRUN:
            raise ValueError(f"{argument} cannot be given: {_SERVED[name]}")
        if not argument.isprintable():
            raise ValueError(f"{argument!r}: one line of plain characters, please")
        if re.match(r"-\w", argument):
            raise ValueError(f"{argument}: write options by their long names, as --container-image=...")
    return arguments


SbatchOptions = Annotated[dict[str, Value], BeforeValidator(_names), AfterValidator(_checked)]
SrunArguments = Annotated[Words, AfterValidator(_checked_srun)]
