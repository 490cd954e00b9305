"""Whole files or none: written aside, synced, renamed. Shared by everything that writes into a run or a shard folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed onto it if the block succeeds, removed if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of this name; it goes with the process, however that ends.

    Raises BlockingIOError if it is held and `wait` is not wanted. Where a file system knows no locks (Lustre mounted without
    them), nobody is kept out: what it guards may then be done twice, but whole files stay whole.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (no NaN), sorted only as given, one trailing newline."""
    write_text(path, _json(value))


def write_json_once(path: Path, value: Any) -> bool:
    """As `write_json`, but as `write_once` does."""
    return write_once(path, _json(value).encode())


def write_once(path: Path, content: bytes) -> bool:
    """Write a whole file, but never over one that is there: of several callers, on any machines, one gets True."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        try:
            os.link(temporary, path)
        except PermissionError:  # a file system without links
            with path.open("xb") as file:
                file.write(content)
            sync(path)
        sync(path.parent)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
