"""Copy the shards that a fold needs to the node's own disk, once per node, whatever ranks and trials run there.

    DISK/ser_hpc-<uid>/                     ours alone: such disks are shared, and nothing of another user is ever believed
      <dataset's fingerprint>.lock          held by the one that copies; the others wait, then find everything there
      <dataset's fingerprint>/
        checked.json                        size, sha256 and identity of each file that was found sound
        <group>/<corpus>-<group>-000000.tar

A file bears its name only when it is whole: it is written aside, compared with the index's size and sha256, and renamed. Later
starts believe `checked.json` for a file that has not been touched since. Whatever goes wrong, the shards are read where they
were packed, and a sentence says why: staging makes reading faster, never possible.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ser_hpc.core.atomic_io import read_json, write_aside, write_json
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.core.errors import UserError
from ser_hpc.shards.index import Shard, ShardIndex
from ser_hpc.shards.storage import Location, Url

MARGIN_BYTES = 1 << 30  # left free for others on the disk
_POLL_S = 0.2


class _CannotStageError(Exception):
    """The reason why shards cannot be staged."""


def stage(index: ShardIndex, positions: np.ndarray, disk: Path, *, wait_s: float) -> tuple[tuple[Location, ...], str]:
    """Return the folders to read the clips at `positions` from (`ShardReader(index, folders)`), and a sentence about each.

    Each is a copy of a dataset below `disk`, or its own folder if there cannot be one: too little space, a read error, a shard
    that is not as it was packed, a folder of somebody else, or another process that still copies after `wait_s` seconds. Never
    raises for those. Only tars that hold these clips are copied; nothing but what a killed copier left half-written is deleted.
    """
    needed = np.unique(index.shard[positions])
    folders, messages = [], []
    for number, (root, fingerprint) in enumerate(zip(index.roots, index.fingerprints, strict=True)):
        shards = [index.shards[i] for i in needed if index.dataset[i] == number]
        folder, summary = _stage(root, fingerprint, shards, disk, wait_s)
        folders.append(folder)
        copy = f"from {folder}: {len(shards)} of {index.dataset.count(number)} needed" if folder != root else f"from {root}"
        messages.append(f"shards are read {copy}, {summary}")
    return tuple(folders), "\n".join(messages)


def _stage(root: Location, fingerprint: str, shards: Sequence[Shard], disk: Path, wait_s: float) -> tuple[Location, str]:
    """Return one dataset's folder to read from, and what was copied there, or why it is its own."""
    began = awake_s()
    try:
        home = _own_folder(disk)
        with _alone(home / f"{fingerprint}.lock", wait_s):
            folder = home / fingerprint
            folder.mkdir(exist_ok=True)
            copied = _bring(root, folder, shards)
    except (OSError, UserError, _CannotStageError) as error:
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        return root, f"not from a copy in {disk}: {reason}"
    took = awake_s() - began
    size = sum(shard.bytes for shard in copied) / 1e6
    return folder, f"{len(copied)} copied, {size:,.1f} MB in {took:.1f} s" if copied else "all there already"


def _bring(root: Location, folder: Path, shards: Sequence[Shard]) -> list[Shard]:
    """Copy what is not there; returns what was copied. Raises OSError, _CannotStageError."""
    for left in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:  # of a killed copier: it no longer holds the lock
        left.unlink(missing_ok=True)
    checked = _Checked(folder)
    missing = [shard for shard in shards if not checked.holds(shard)]
    needed, free = sum(shard.bytes for shard in missing), shutil.disk_usage(folder).free
    if needed and needed + MARGIN_BYTES > free:
        raise _CannotStageError(
            f"that needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free, "
            f"of which {MARGIN_BYTES / 1e6:,.0f} MB are left to others"
        )
    for shard in missing:
        with write_aside(folder / shard.path) as temporary:
            _copy(root / shard.path, temporary)
            if not _is_sound(temporary, shard):
                raise _CannotStageError(f"{root / shard.path} is not what was packed, or changed on its way (size, sha256)")
        checked.add(shard)
    return missing


def _copy(source: Location, target: Path) -> None:
    if isinstance(source, Url):
        source.copy_to(target)
    else:
        shutil.copyfile(source, target)


class _Checked:
    """Which staged files were found sound, and not touched since: reading them all again at every start would take minutes.

    Believed for a file of the same size, modification time and inode. That misses what a failing disk does to a file later:
    every clip has a checksum of its own for that, and the reader goes back to the original.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "checked.json"
        self._known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            self._known = dict(read_json(self._file))

    def holds(self, shard: Shard) -> bool:
        path = self._folder / shard.path
        if not path.is_file():
            return False
        if self._known.get(shard.path) == self._record(shard):
            return True
        if not _is_sound(path, shard):
            return False
        self.add(shard)
        return True

    def add(self, shard: Shard) -> None:
        self._known[shard.path] = self._record(shard)
        write_json(self._file, self._known)

    def _record(self, shard: Shard) -> dict[str, Any]:
        found = (self._folder / shard.path).stat()
        return {"sha256": shard.sha256, "bytes": found.st_size, "modified_ns": found.st_mtime_ns, "inode": found.st_ino}


def _is_sound(path: Path, shard: Shard) -> bool:
    if path.stat().st_size != shard.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256


def _own_folder(disk: Path) -> Path:
    """Make our folder, which only we can write into, if it is not there. Raises _CannotStageError if it is anything else."""
    home = disk / f"ser_hpc-{os.getuid()}"
    disk.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise _CannotStageError(f"{home} is not a folder of ours alone (a link, another owner, or others may write into it)")
    return home


@contextmanager
def _alone(lock: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock; it goes with its holder, however that ends. Raises _CannotStageError after `wait_s` seconds of waiting."""
    with lock.open("a") as file:
        deadline = awake_s() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if awake_s() > deadline:
                    raise _CannotStageError(f"another process still copied after {wait_s:.0f} s") from None
                time.sleep(_POLL_S)
        yield
