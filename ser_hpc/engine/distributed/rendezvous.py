"""Let the ranks of one start meet: at a store that all of them can reach, and that knows which have come.

Under srun and our launcher rank 0 opens it on a free port, keeps it open, and writes its address into the trial's folder, where
the others find it: no port is ever guessed or free again before it is used, so trials that share a node cannot collide,
whatever range the port is from. Ranks of one node meet on its loopback, whatever its name stands for. torchrun brings a store.
"""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import Store, TCPStore, rendezvous  # type: ignore[attr-defined]  # public, but not in __all__

from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.core.errors import UserError, listed
from ser_hpc.run.rank import Rank, is_torchrun, start_id

_LOOPBACK = "127.0.0.1"


def meet_ranks(folder: Path, rank: Rank, timeout: timedelta) -> tuple[Store, str]:
    """Return the store, once all ranks are there, and the host that it is on. `folder`: a folder that every rank can see.

    Raises UserError if somebody does not come.
    """
    if is_torchrun(os.environ):
        host = os.environ["MASTER_ADDR"]
        store, _, _ = next(rendezvous("env://", rank.number, rank.size, timeout=timeout))
        _wait_for_all(store, rank, timeout)
        return store, host
    address_file = folder / f".ranks-{start_id(os.environ)}.json"
    if rank.is_main:
        host = _LOOPBACK if rank.on_one_node else socket.gethostname()
        store = TCPStore(_LOOPBACK, 0, rank.size, is_master=True, timeout=timeout, wait_for_workers=False)
        write_json(address_file, {"host": host, "port": store.port})
    else:
        host, store = _find(address_file, rank, timeout)
    try:
        _wait_for_all(store, rank, timeout)
    finally:
        if rank.is_main:
            address_file.unlink(missing_ok=True)
    return store, host


def _find(address_file: Path, rank: Rank, patience: timedelta) -> tuple[str, Store]:
    deadline = awake_s() + patience.total_seconds()
    while not address_file.exists():
        if awake_s() > deadline:
            raise UserError(f"rank {rank.number} of {rank.size} waited {patience} for rank 0 at {address_file}")
        time.sleep(0.05)
    address = read_json(address_file)
    host, port = address["host"], address["port"]
    try:
        return host, TCPStore(host, port, rank.size, is_master=False, timeout=patience)
    except RuntimeError as error:
        raise UserError(f"rank {rank.number} of {rank.size} cannot reach rank 0 at {host}, port {port}: {error}") from error


def _wait_for_all(store: Store, rank: Rank, patience: timedelta) -> None:
    store.set(f"here/{rank.number}", "")
    everyone = {f"here/{other}": other for other in range(rank.size)}
    deadline = awake_s() + patience.total_seconds()  # not store.wait: its clock goes on while a job is suspended
    while not store.check(list(everyone)):
        if awake_s() > deadline:
            missing = [other for key, other in everyone.items() if not store.check([key])]
            raise UserError(
                f"rank {rank.number} of {rank.size} waited {patience} for others that did not come, {listed(missing)}: "
                "did every task start?"
            )
        time.sleep(0.05)
