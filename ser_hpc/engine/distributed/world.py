"""Bring the ranks of one trial together: this rank's number and device, and the few collectives that training needs."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]  # public, but not in __all__

from ser_hpc.core.errors import UserError
from ser_hpc.engine import gpu
from ser_hpc.engine.distributed.rendezvous import meet_ranks
from ser_hpc.run.rank import Rank

_FOR_EVER = timedelta(days=20)  # in milliseconds, it fits into 32 bits
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True, slots=True)
class World:
    """`device` is this rank's own; `size` 1 needs no process group.

    `cpu_group`: a group for collectives on the CPU, so that nobody waits for a GPU to hear it; None: the group of all.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def environment(self) -> dict[str, str]:
        """Return what DeepSpeed asks for; where a name is missing it looks for mpi4py. It makes LOCAL_RANK its GPU: so that is
        the device's index as this process sees it, which is 0 wherever each task sees its own GPU alone."""
        local = self.local_rank if self.device.index is None else self.device.index
        names = {"RANK": self.rank, "WORLD_SIZE": self.size, "LOCAL_RANK": local, "LOCAL_SIZE": self.local_size}
        return {name: str(value) for name, value in names.items()}

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; every rank gets it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Agree before acting: each flag is true on every rank if it is true on one."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, group=self.cpu_group)
        return tuple(count > 0 for count in raised.tolist())

    def min_over_ranks(self, number: int) -> int:
        """Take the smallest of all ranks' numbers, on every rank."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MIN)
        return int(value)

    def broadcast_numbers(self, *numbers: int) -> tuple[int, ...]:
        """Take rank 0's numbers, on every rank."""
        values = torch.tensor(numbers, device=self.device)
        self.broadcast_from_main([values])
        return tuple(values.tolist())

    def broadcast_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Put rank 0's values into these tensors, on every rank."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def shut_down(self) -> None:
        """Leave in order: ZeRO-3 aborts at exit without it."""
        if dist.is_initialized():
            self.barrier()
            dist.destroy_process_group()


def join_world(meeting_place: Path, rank: Rank, timeout: timedelta, meeting: timedelta = timedelta(minutes=5)) -> World:
    """Find the other ranks and this rank's device. `meeting_place`: a folder that every rank can see.

    `timeout` of connecting; `meeting`: how long to wait for the others. Raises UserError if there are more ranks on this node
    than GPUs, or if a rank does not come.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", _own_gpu(rank, os.environ)) if cuda else torch.device("cpu")
    if cuda:
        gpu.set_up_gpu(device)
    cpu_group = None
    if rank.size > 1:
        store, host = meet_ranks(meeting_place, rank, meeting)
        _choose_interface(host)
        _open_group(device, store=store, rank=rank.number, world_size=rank.size, timeout=timeout)
        cpu_group = dist.new_group(backend="gloo", timeout=timeout) if cuda else None
        wait_for_ever()
    return World(rank.number, rank.size, rank.local, rank.local_size, device, cpu_group)


def wait_for_ever() -> None:
    """Let no collective of the groups that there are now give up: their clock goes on while a suspended job's ranks are
    stopped, and all of them would fail as they wake up. A rank that hangs is ended by its watchdog, which knows better."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(_FOR_EVER, group)


def need_group(world: World) -> None:
    """Open a process group even for one rank alone, as DeepSpeed wants it."""
    if not dist.is_initialized():
        assert world.size == 1, "several ranks have met already"
        _open_group(world.device, store=HashStore(), rank=0, world_size=1)


def _open_group(device: torch.device, **arguments: Any) -> None:
    """Tell NCCL its GPU, rather than have it guess from the rank's number at the first exchange."""
    cuda = device.type == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None, **arguments)


def _own_gpu(rank: Rank, env: Mapping[str, str]) -> int:
    """Find this rank's GPU among those that it sees: all of the node's, or (as some sites bind them) its own alone."""
    visible = torch.cuda.device_count()
    if visible >= rank.local_size:
        return rank.local
    if visible == 1 and env.get("SLURM_GPUS_ON_NODE", "").isdigit() and int(env["SLURM_GPUS_ON_NODE"]) >= rank.local_size:
        return 0
    raise UserError(
        f"{rank.local_size} ranks were started on this node, which has {visible} GPUs for them: ask for one task per GPU"
    )


def num_threads() -> int:
    """Return the number of torch's threads for an operation on the CPU: it sums in another order on another number of them."""
    return torch.get_num_threads()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _choose_interface(host: str) -> None:
    """Choose gloo's interface. It takes the address that this machine's own name stands for. On a node with several networks,
    or in a container, that may not be the one that leads to the others: let it use the interface on the way to rank 0."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # of a datagram socket: sends nothing
        mine: str = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            if not mine.startswith("127.") and _address(probe, name) == mine:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _address(probe: socket.socket, interface: str) -> str | None:
    """Find the IPv4 address of an interface."""
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()))
    except OSError:
        return None
    return socket.inet_ntoa(answer[20:24])
