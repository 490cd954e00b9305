"""Read packed shards from a folder or from a store that fsspec reaches by URL (`s3://`, `https://`, `memory://` and more).

A `Url` has the part of `pathlib.Path` that reading shards needs, so an index is read alike from both. What a store answers is
never believed: every file and clip is compared with the checksums that were packed with it. fsspec is imported with the first
URL; a store's own package (`aiohttp` for https, `s3fs` for s3) must be installed, and its credentials are found as it says.
"""

from __future__ import annotations

import glob
import os
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ser_hpc.core.atomic_io import DISK_FULL_ERRNOS, file_lock, write_aside
from ser_hpc.core.errors import UserError

_WAITS_S = (0.5, 2.0, 8.0)  # before a request is tried again
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Url:
    """A file or folder of a store. Methods raise FileNotFoundError, or UserError when the store does not answer."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.url.rstrip('/')}/{name}")

    def with_suffix(self, suffix: str) -> Url:
        """Replace the suffix, as pathlib does."""
        return Url(self.url[: self.url.rindex(".")] + suffix)

    def resolve(self) -> Url:
        """Return the URL itself: it is absolute."""
        return self

    def glob(self, pattern: str) -> list[Url]:
        """Return what matches, where the store can list its files; a web server cannot, and nothing is found."""
        try:
            return [Url(str(path)) for path in self._ask(lambda store, path: store.glob(f"{path}/{pattern}"))]
        except (OSError, UserError):
            return []

    def size(self) -> int:
        """Return the file's size in bytes."""
        return int(self._ask(lambda store, path: store.size(path)))

    def read_bytes(self) -> bytes:
        """Read the whole file."""
        return bytes(self._ask(lambda store, path: store.cat_file(path)))

    def copy_to(self, target: Path) -> None:
        """Copy the file to `target` on this machine."""
        self._ask(lambda store, path: store.get_file(path, str(target)))

    def _ask(self, request: Callable[[Any, str], Result]) -> Result:
        store, path = _store(self.url)
        return _with_retries(lambda: request(store, path), self.url)


Location = Path | Url


def parse_location(name: str) -> Location:
    """Return the folder or file that a setting names, by a path or a URL."""
    if name.startswith("file://"):
        return Path(name.removeprefix("file://"))
    return Url(name) if "://" in name else Path(name)


def size(location: Location) -> int:
    """Return a file's size in bytes. Raises FileNotFoundError; UserError if the store does not answer."""
    return location.size() if isinstance(location, Url) else location.stat().st_size


def open_on_node(url: Url, name: str, num_bytes: int, open_checked: Callable[[Path], Result]) -> Result:
    """Open a copy of a file in this machine's folder for temporary files ($TMPDIR), copied once for all processes.

    `open_checked` opens a path; it raises OSError or ValueError where that is not the file: an earlier copy is then replaced.
    Raises what it raises of the new one; FileNotFoundError; UserError if the store does not answer or has a file of another
    size, or the folder is not ours alone or cannot be written.
    """
    folder = own_folder()
    copy = folder / name
    try:
        with file_lock(copy.with_suffix(".lock")):
            with suppress(OSError, ValueError):
                return open_checked(copy)
            if (found := url.size()) != num_bytes:
                raise UserError(f"{url} has {found} bytes instead of {num_bytes}; copy it again")
            for left in folder.glob(f".{glob.escape(name)}.*.tmp"):  # of a killed copier: it no longer holds the lock
                left.unlink(missing_ok=True)
            with write_aside(copy) as temporary:
                url.copy_to(temporary)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"{url} cannot be copied to {folder} ({error.strerror or error}); set TMPDIR to a folder with "
            f"{num_bytes / 1e6:.0f} MB free"
        ) from error
    return open_checked(copy)


def own_folder() -> Path:
    """Make our folder for temporary files, if it is not there. Raises UserError where it cannot be made, or is another's."""
    try:
        folder = Path(tempfile.gettempdir()) / f"ser_hpc-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"there is no folder for temporary files ({error}); set TMPDIR to one that you can write to") from error
    if not _is_ours(folder):
        raise UserError(f"{folder} is not a folder of yours alone; set TMPDIR to another place")
    return folder


def _is_ours(folder: Path) -> bool:
    """Tell whether nobody else can write into the folder: what is mapped must stay as it was checked."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def read_ranges(ranges: Sequence[tuple[Url, int, int]]) -> list[bytes]:
    """Read from each file the bytes from the second to the third number (exclusive), all requested at once.

    A file that ends early gives fewer. Raises as Url's methods do, and UserError if a server sends whole files.
    """
    if not ranges:
        return []
    store, _ = _store(str(ranges[0][0]))
    paths, starts, ends = zip(*((_store(str(url))[1], start, end) for url, start, end in ranges), strict=True)
    found = _with_retries(lambda: store.cat_ranges(list(paths), list(starts), list(ends), on_error="raise"), str(ranges[0][0]))
    for content, (url, start, end) in zip(found, ranges, strict=True):
        if len(content) > end - start:
            raise UserError(f"{url}: its server sends whole files where a part was asked for; copy the shards from it")
    return [bytes(content) for content in found]


def _store(url: str) -> tuple[Any, str]:
    """Return fsspec's file system (which it caches) and the path within it. Raises UserError if it cannot be opened."""
    import fsspec

    try:
        store, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: fsspec cannot open it ({error}); give a folder, or install what it names") from error
    return store, path


def _with_retries(request: Callable[[], Result], url: str) -> Result:
    """Make a request, again a few times while it fails, since networks fail for a moment; then raise UserError."""
    for wait in (*_WAITS_S, None):
        try:
            return request()
        except FileNotFoundError:
            raise
        except Exception as error:  # each store has exceptions of its own
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
                raise  # it is this machine's disk, to which something is copied
            if wait is None:
                raise UserError(f"{url} cannot be read ({type(error).__name__}: {error}); does its store answer?") from error
            time.sleep(wait)
    raise AssertionError
