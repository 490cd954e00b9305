"""Manage the folder that is packed into: its lock, which files in it are shards, and the removal of stale ones."""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ser_hpc.core.atomic_io import fsync_path
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.core.errors import UserError, listed
from ser_hpc.shards.assignment import ShardPlan
from ser_hpc.shards.index import DATASET
from ser_hpc.shards.shard_file import explain_disk_errors

_LOCK = ".lock"
_LOCK_WAIT_SECONDS = 2.0  # the workers of a killed run may take a moment to end
_SHARD_NAME = re.compile(r"(?P<corpus>[a-z0-9_]{1,24})-(?P<group>.+)-\d{6}\.(tar|parquet|fingerprints)")


@contextmanager
def lock_output(out: Path, shared: bool) -> Iterator[None]:
    """Make and lock `out` against other packers (`shared`: but not other parts), and remove a killed run's temporaries.

    Raises UserError if another process packs into it, it cannot be written, or it is a file or a folder of something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder to pack into")
    if out.is_dir() and any(out.iterdir()) and not (out / _LOCK).exists() and not (out / DATASET).exists():
        raise UserError(f"{out} is not empty and holds no shards; give a new or empty folder to pack into")
    with explain_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("a+")  # NFS gives shared locks to readers alone
    with lock:
        try:
            free = _lock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, _LOCK_WAIT_SECONDS)
        except OSError:
            free = True  # a file system without locks: only a second packer at the same time would be a danger
        if not free:
            raise UserError(f"another process is packing into {out}; wait for it, or pack into another folder")
        if not shared:
            _tidy(out)
        yield
        if shared:
            with suppress(OSError):
                if _lock(lock, fcntl.LOCK_EX, 0.0):  # the last part to leave: nobody writes the temporaries that are here
                    _tidy(out)


def refuse_other_corpora(out: Path, plans: Sequence[ShardPlan]) -> None:
    """Raise UserError if `out` holds another corpus: packing deletes shards that are not in its plan, but never those."""
    names = [_SHARD_NAME.fullmatch(path.name) for path in _shard_files(out)]
    others = {name["corpus"] for name in names if name} - {shard.corpus for shard in plans}
    if others:
        raise UserError(f"{out} holds shards of {listed(sorted(others))}; pack into another folder, or delete this one")


def stale_files(out: Path, plans: Sequence[ShardPlan]) -> list[Path]:
    """Return the files of shards that are not in the plan."""
    wanted = {out / shard.path for shard in plans}
    return [path for path in _shard_files(out) if path.with_suffix(".tar") not in wanted]


def make_room(todo: Sequence[ShardPlan], stale: Sequence[Path], wanted: set[Path], out: Path) -> None:
    """Check the free disk space, delete dataset.json if anything will change, then the `stale` files and empty folders.

    `wanted`: folders that stay. Raises UserError if the disk is too small.
    """
    needed, free = sum(shard.estimated_bytes for shard in todo), shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"packing needs about {needed / 1e6:.1f} MB in {out}, but only {free / 1e6:.1f} MB are free; "
            "free some space, or pack into another folder"
        )
    if todo or stale:
        (out / DATASET).unlink(missing_ok=True)
        fsync_path(out)
    for path in stale:
        path.unlink(missing_ok=True)  # another part may be as quick
    for folder in {path.parent for path in stale} - wanted:
        with suppress(OSError):  # it holds something else, or is gone
            folder.rmdir()


def _shard_files(out: Path) -> list[Path]:
    return [
        path
        for path in sorted(out.glob("*/*"))
        if (name := _SHARD_NAME.fullmatch(path.name)) and name["group"] == path.parent.name
    ]


def _lock(file: IO[str], operation: int, wait_s: float) -> bool:
    """Return whether the lock was taken within `wait_s` seconds. Raises OSError where files cannot be locked."""
    deadline = awake_s() + wait_s
    while True:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if awake_s() > deadline:
                return False
            time.sleep(0.1)


def _tidy(out: Path) -> None:
    for temporary in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp")]:
        temporary.unlink(missing_ok=True)
