"""The ranks of one trial: who am I, where are the others, and the few collectives that training needs.

Ranks are started by torchrun (RANK, WORLD_SIZE, MASTER_ADDR ...), by srun (SLURM_PROCID ...), by our local launcher, or alone.
Under srun and the local launcher rank 0 opens a store on a free port, keeps it open, and writes its address into the trial's
folder, where the others find it: no port is ever guessed, so trials that share a node cannot collide.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # public, but not in __all__

from ser_hpc.errors import UserError
from ser_hpc.files import read_json, write_json

TIMEOUT = timedelta(minutes=30)
_MEETING = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class World:
    """`device` is this rank's own; `size` 1 needs no process group."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place; every rank gets it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one: how ranks agree before they act."""
        return bool(self.sum(torch.tensor([int(flag)], device=self.device)).item()) if self.size > 1 else flag

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values in these tensors, on every rank."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """The orderly end: ZeRO-3 aborts at exit without it."""
        if dist.is_initialized():
            self.barrier()
            dist.destroy_process_group()


def join(meeting_place: Path) -> World:
    """Find the other ranks and this rank's device. `meeting_place`: a folder that every rank can see."""
    rank, size, local_rank, local_size = _who_am_i(os.environ)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
    # DeepSpeed looks for mpi4py where one of these is missing.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local_rank), "LOCAL_SIZE": str(local_size)}
    if size > 1 or "MASTER_ADDR" in os.environ:
        backend = "nccl" if cuda else "gloo"
        if "MASTER_ADDR" in os.environ:
            dist.init_process_group(backend, timeout=TIMEOUT)
        else:
            store = _meet(meeting_place / f".ranks-{_attempt(os.environ)}.json", rank, size)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return World(rank, size, local_rank, local_size, device)


def _who_am_i(env: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Rank, ranks, rank on this node, ranks on this node."""
    if "RANK" in env and "WORLD_SIZE" in env:
        size = int(env["WORLD_SIZE"])
        return int(env["RANK"]), size, int(env.get("LOCAL_RANK", 0)), int(env.get("LOCAL_WORLD_SIZE", size))
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        # The launcher and slurm/train.sbatch ask for as many tasks on every node.
        size = int(env["SLURM_STEP_NUM_TASKS"])
        local_size = -(-size // int(env["SLURM_STEP_NUM_NODES"]))
        return int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"]), local_size
    return 0, 1, 0, 1


def _attempt(env: Mapping[str, str]) -> str:
    """A name that the ranks of one start share, and no other start has."""
    if "SER_HPC_ATTEMPT" in env:
        return env["SER_HPC_ATTEMPT"]
    return "-".join(env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))


def _meet(address_file: Path, rank: int, size: int) -> Store:
    """Rank 0 opens the store and writes where it is; the others read that. Raises UserError if rank 0 does not come."""
    if rank == 0:
        host = socket.gethostname() if "SLURM_STEP_ID" in os.environ else "localhost"
        store = TCPStore(host, 0, size, is_master=True, timeout=_MEETING, wait_for_workers=False)
        write_json(address_file, {"host": host, "port": store.port})
        return store
    deadline = time.monotonic() + _MEETING.total_seconds()
    while not address_file.exists():
        if time.monotonic() > deadline:
            raise UserError(f"rank {rank} of {size} waited {_MEETING} for rank 0 at {address_file}: did every task start?")
        time.sleep(0.05)
    address = read_json(address_file)
    return TCPStore(address["host"], address["port"], size, is_master=False, timeout=_MEETING)
