"""Drop the Slurm variables that the caller's environment has from an allocation, a profile or an earlier job.

sbatch, srun, squeue and others take options from variables, and these win over a batch script. Jobs submitted from within an
allocation inherit them as well, and their srun obeys them or refuses to start. Settings are the one way to say what jobs ask
for, so the launcher drops all that speaks to Slurm's commands, and says which of it would have mattered. The rest of its
environment jobs do inherit (`--export=ALL`, which is sbatch's default): PATH, HF_HOME, proxies.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ser_hpc.config.cluster import ClusterSettings

if TYPE_CHECKING:
    from rich.console import Console

_SLURMS = tuple(f"{name}_" for name in ("SLURM", "SBATCH", "SRUN", "SALLOC", "SQUEUE", "SACCT", "SCANCEL", "SINFO"))
# Which cluster, and who asks. SLURM_CLUSTERS too: all commands obey it alike, so jobs are asked for where they were submitted;
# not SBATCH_CLUSTERS, which submits elsewhere than squeue looks.
_LOCATES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
_ACCOUNT = "SBATCH_ACCOUNT"

# What srun takes for its options where sbatch never sets it for a job: whatever stands there was inherited.
_NEVER_OF_A_JOB = (
    *("EXPORT_ENV", "CPU_BIND", "CPU_BIND_LIST", "CPU_BIND_TYPE", "CPU_BIND_VERBOSE", "MEM_BIND", "MEM_BIND_LIST"),
    *("MEM_BIND_TYPE", "MEM_BIND_VERBOSE", "MEM_BIND_PREFER", "MEM_BIND_SORT", "ACCOUNT", "PARTITION", "QOS", "TIMELIMIT"),
    *("CONSTRAINT", "DEPENDENCY", "RESERVATION", "WCKEY", "EXCLUSIVE", "EXACT", "OVERLAP", "IMMEDIATE", "LABELIO", "MPI_TYPE"),
    *("NO_KILL", "OPEN_MODE", "REMOTE_CWD", "WORKING_DIR", "STDERRMODE", "STDINMODE", "STDOUTMODE", "TEST_EXEC", "THREADS"),
    *("TASK_PROLOG", "TASK_EPILOG", "PROLOG", "EPILOG", "SIGNAL", "GRES", "STEP_GRES", "CORE_SPEC", "THREAD_SPEC", "WAIT"),
    *("MULTI_PROG", "DEBUG", "USE_MIN_NODES"),
)
# What sbatch does set for a job that asks so, beside what our jobs ask: two that say it differently, and srun ends.
_CONFLICTS = {
    "MEM_PER_NODE": ("MEM_PER_CPU", "MEM_PER_GPU"),
    "CPUS_PER_TASK": ("CPUS_PER_GPU", "TRES_PER_TASK"),
    "GPUS_PER_NODE": ("GPUS", "GPUS_PER_TASK", "GPUS_PER_SOCKET"),
    "NTASKS_PER_NODE": ("NTASKS_PER_GPU",),
}
_OTHERS = ("HINT", "THREADS_PER_CORE", "DISTRIBUTION", "GPU_BIND", "GPU_FREQ", "OVERCOMMIT")  # of sbatch's, harmless in a job
_MATTERS = frozenset(
    f"SLURM_{name}" for name in (*_NEVER_OF_A_JOB, *_OTHERS, *(other for group in _CONFLICTS.values() for other in group))
)
# Not those by which only the words of sbatch change.
_IDLE = ("SBATCH_DEBUG", "SBATCH_COLOR")


def strip_slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without Slurm's variables, but for those that locate the cluster and authenticate the user."""
    return {name: value for name, value in environment.items() if name in _LOCATES or not name.startswith(_SLURMS)}


def drop_inherited(cluster: ClusterSettings, out: Console) -> ClusterSettings:
    """Take the caller's Slurm variables from this process, before it submits; print which would have changed the jobs.

    Returns the settings, whose account is SBATCH_ACCOUNT where they name none: that is how sites have it said once and for all.
    """
    given = dict(os.environ)
    for name in given.keys() - strip_slurm_variables(given).keys():
        del os.environ[name]
    ignored = set(influential_variables(given))
    account = given.get(_ACCOUNT)
    if account and cluster.account in (None, account):
        ignored.discard(_ACCOUNT)
        if cluster.account is None:
            out.print(f"Account: {account}, from {_ACCOUNT}.")
        cluster = cluster.model_copy(update={"account": account})
    if ignored:  # of the five variables of a binding the one that says it all
        listing = ", ".join(f"{name}={given[name]}" for name in sorted(ignored) if "_BIND_" not in name)
        out.print(f"Ignored, for settings alone say what jobs ask for (see cluster.sbatch): {listing}", soft_wrap=True)
    return cluster


def influential_variables(names: Iterable[str]) -> list[str]:
    """Select the variables that sbatch, or the srun of a job that inherits them, would have taken for options."""
    return [name for name in names if name in _MATTERS or (name.startswith("SBATCH_") and name not in _IDLE)]


def unset_lines() -> list[str]:
    """Return lines for a batch script typed by hand, before srun, that unset what it inherited from where it was submitted.

    What Slurm set for the job itself stays: of two variables that exclude each other it is the one that our scripts ask by.
    """
    lines = ["unset " + " ".join(f"SLURM_{name}" for name in _NEVER_OF_A_JOB)]
    for ours, others in _CONFLICTS.items():
        lines.append(f'[ -z "${{SLURM_{ours}:-}}" ] || unset ' + " ".join(f"SLURM_{name}" for name in others))
    return lines
