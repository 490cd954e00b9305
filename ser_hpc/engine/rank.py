"""Which rank of how many this process is; known before torch is imported.

Ranks are started by torchrun (RANK, WORLD_SIZE ...), by srun (SLURM_PROCID ...), by our local launcher, or alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ser_hpc.errors import UserError


@dataclass(frozen=True, slots=True)
class Rank:
    """`number` of `size` ranks; `local` of `local_size` on this node."""

    number: int
    size: int
    local: int
    local_size: int

    @property
    def is_main(self) -> bool:
        return self.number == 0


def who_am_i(env: Mapping[str, str]) -> Rank:
    """Raises UserError where Slurm was asked for several tasks and this one was not started by srun: it would train alone."""
    if "RANK" in env and "WORLD_SIZE" in env:
        size = int(env["WORLD_SIZE"])
        return Rank(int(env["RANK"]), size, int(env.get("LOCAL_RANK", 0)), int(env.get("LOCAL_WORLD_SIZE", size)))
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        # The launcher and slurm/train.sbatch ask for as many tasks on every node.
        size = int(env["SLURM_STEP_NUM_TASKS"])
        local_size = -(-size // int(env["SLURM_STEP_NUM_NODES"]))
        return Rank(int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"]), local_size)
    if int(env.get("SLURM_NTASKS", 1)) > 1:
        raise UserError(
            f"this job has {env['SLURM_NTASKS']} tasks, but this process was started without srun and would train alone: "
            "start it as `srun python -m ser_hpc.train ...`, or ask for one task"
        )
    return Rank(0, 1, 0, 1)


def start_name(env: Mapping[str, str]) -> str:
    """A name that the ranks of one start share, and no other start has."""
    if "SER_HPC_START" in env:
        return env["SER_HPC_START"]
    return "-".join(env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))


def submission(env: Mapping[str, str]) -> str | None:
    """What one submission's restarts have in common: the local launcher, or the Slurm job (array element)."""
    if "SER_HPC_LAUNCH" in env:
        return env["SER_HPC_LAUNCH"]
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '0')}"
    return env.get("SLURM_JOB_ID")
