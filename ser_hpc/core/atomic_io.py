"""Write whole files or none: written aside, synced, renamed. Used by everything that writes into a run or a shard folder.

Some file systems have no hard links, no locks, no renaming over a file or no syncing of folders, and say so with one error or
another (EPERM, ENOSYS, EOPNOTSUPP, EIO ...). What is lacking is done in another way, or without; nothing finished is lost for
want of it. Making a folder, and renaming to a free name, are taken for granted. A sealed JSON file holds a hash of its content.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ser_hpc.core.awake_clock import awake_s

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT_SYNC = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM)
# What reading a JSON file that anybody may have changed, and taking it for what was written, can raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError)
_SEAL = "sha256"
_CLAIM_S = 10.0  # renaming a file takes no longer: whoever has claimed the name, and has not done it by then, was killed


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed onto it if the block succeeds, removed if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        fsync_path(temporary)
        replace_file(temporary, path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(temporary: Path, path: Path) -> None:
    """Rename a file, onto another if there is one.

    Where that is not to be had, the other goes to `.NAME.before` for the moment: what a kill finds is one of them, or both.
    """
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS or not path.exists():
            raise
        before = path.with_name(f".{path.name}.before")
        before.unlink(missing_ok=True)
        path.rename(before)
        try:
            temporary.rename(path)
        except OSError:
            before.rename(path)
            raise
        before.unlink()


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock of this name; it goes with the process, however that ends. Yields its file descriptor.

    A child that is given the descriptor holds the lock too, until it ends.

    Raises BlockingIOError if it is held and `wait` is not wanted. Where a file system knows no locks (Lustre mounted without
    them), nobody is kept out: what it guards may then be done twice, but whole files stay whole.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:  # no locks here
            pass
        yield file.fileno()


def fsync_path(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk, where the file system knows how."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def follow_umask(path: Path) -> None:
    """Give a file the mode that a new one has here, where a library made it for its owner alone."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.mode")
    try:
        probe.touch()
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file, or leave the old one."""
    with write_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), keys in the order given, one trailing newline. Raises ValueError for NaN."""
    write_text(path, _json(value))


def write_json_once(path: Path, value: Any) -> bool:
    """Write JSON as `write_json` does, but never over a file; True if this call wrote it."""
    return write_once(path, _json(value).encode())


def write_once(path: Path, content: bytes) -> bool:
    """Write a whole file, but never over one that is there: of several callers, on any machines, one gets True."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        fsync_path(temporary)
        try:
            os.link(temporary, path)
            first = True
        except OSError as error:
            first = path.exists() and path.samefile(temporary)  # NFS may fail to say that it has done it
            if not first and not isinstance(error, FileExistsError):
                first = _claim(temporary, path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return first


def _claim(temporary: Path, path: Path) -> bool:
    """Do what linking does, where there are no links: rename to the name that is still free, one caller at a time.

    Making a folder is what only one can do. It is in the way for a moment, or a killed caller has left it.
    """
    content, claim = temporary.read_bytes(), path.with_name(f".{path.name}.claim")
    deadline = awake_s() + _CLAIM_S
    while not path.exists():
        try:
            claim.mkdir()
        except FileExistsError:
            if awake_s() < deadline:
                time.sleep(0.05)
                continue
        try:
            if not path.exists():
                temporary.rename(path)
        finally:
            with suppress(OSError):
                claim.rmdir()
        return path.read_bytes() == content
    return False


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError, or ValueError where it is not JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a value as JSON, in hex; whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """Return the value with its hash added."""
    return value | {_SEAL: json_digest(value)}


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write the value as JSON with its hash, so that it shows when somebody has changed it.

    Against a slip, a merge of two folders, a script that "only corrects" a number; not against who computes the hash anew.
    """
    write_json(path, seal(value))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what was written, without its hash. Raises OSError, or ValueError where it is not what was written."""
    return unseal(read_json(path))


def unseal(value: Any) -> dict[str, Any]:
    """Check the hash of a value that was read already, and return it without. Raises ValueError where it does not match."""
    if not isinstance(value, dict) or _SEAL not in value:
        raise ValueError("it has no checksum")
    content = {name: inner for name, inner in value.items() if name != _SEAL}
    if json_digest(content) != value[_SEAL]:
        raise ValueError("it was changed after it was written: its checksum does not fit")
    return content
