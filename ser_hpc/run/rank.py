"""Find which rank of how many this process is, from the environment, before torch is imported.

Ranks are started by our local launcher or by torchrun (RANK, WORLD_SIZE ...), by srun (SLURM_PROCID ...), or alone. Variables
are inherited, from shells, containers (enroot sets some of these) and jobs that start jobs: so RANK and its like, MASTER_ADDR
too, are believed only beside the mark of a launcher that sets them all.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from ser_hpc.core.errors import UserError

_OURS, _TORCHRUN = "SER_HPC_START", "TORCHELASTIC_RUN_ID"  # their marks
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OF_SRUN = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES")
# What a launcher sets for its ranks, or its ranks for their own: ours clears them all before it sets its own.
LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    _TORCHRUN,
)


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank: `number` of `size` ranks; `local` of `local_size` on this node. Numbers start at 0."""

    number: int
    size: int
    local: int
    local_size: int

    @property
    def is_main(self) -> bool:
        return self.number == 0

    @property
    def on_one_node(self) -> bool:
        return self.local_size == self.size


def rank_from_env(env: Mapping[str, str]) -> Rank:
    """Read this process's rank.

    Raises UserError where Slurm was asked for several tasks and this one was not started by srun: it would train alone; and
    where a launcher's variable is no number.
    """
    if is_torchrun(env) or (_OURS in env and "RANK" in env and "WORLD_SIZE" in env):
        size = _number(env, "WORLD_SIZE", 1)
        return Rank(_number(env, "RANK", 0), size, _number(env, "LOCAL_RANK", 0), _number(env, "LOCAL_WORLD_SIZE", size))
    if all(name in env for name in _OF_SRUN):
        # The launcher and slurm/train.sbatch ask for as many tasks on every node.
        number, local, size, nodes = (_number(env, name) for name in _OF_SRUN[1:])
        return Rank(number, size, local, -(-size // max(nodes, 1)))
    if "SLURM_JOB_ID" in env and _number(env, "SLURM_NTASKS", 1) > 1:
        raise UserError(
            f"this job has {env['SLURM_NTASKS']} tasks, but this process was started without srun and would train alone: "
            "start it as `srun python -m ser_hpc.train ...`, or ask for one task"
        )
    return Rank(0, 1, 0, 1)


def _number(env: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = env.get(name, "" if otherwise is None else str(otherwise))
    if not text.isascii() or not text.isdigit():
        raise UserError(f"{name}={text!r} is no number: it says which rank this process is, so start it anew, or unset it")
    return int(text)


def is_torchrun(env: Mapping[str, str]) -> bool:
    """Tell whether torchrun started this rank, and keeps a store for its ranks to meet at."""
    return _OURS not in env and _TORCHRUN in env and all(name in env for name in _OF_TORCHRUN)


def unconfirmed_ranks(env: Mapping[str, str], rank: Rank) -> str | None:
    """Return a warning where the environment hints at several ranks, but bears no launcher's mark; else None."""
    world_size = env.get("WORLD_SIZE", "1")
    if rank.size > 1 or world_size == "1":
        return None
    return (
        f"this process trains alone: WORLD_SIZE={world_size} is set here, but neither by torchrun nor by srun, so it is taken "
        "for a leftover; several ranks are started with one of these"
    )


def start_id(env: Mapping[str, str]) -> str:
    """Return a name that the ranks of one start share, and no other start has."""
    if _OURS in env:
        return env[_OURS]
    return "-".join(env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))


def submission_id(env: Mapping[str, str]) -> str | None:
    """Return what one submission's restarts have in common: the local launcher's id, or the Slurm job's (array element)."""
    if "SER_HPC_LAUNCH" in env:
        return env["SER_HPC_LAUNCH"]
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '0')}"
    return env.get("SLURM_JOB_ID")


def prepare_allocator(environment: MutableMapping[str, str]) -> None:
    """Make torch's GPU memory one piece that grows, without holes for other clip lengths; call it before torch is imported.
    The user's own setting of the allocator stays."""
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environment.keys():
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
