"""Open a source file once, and read it once if it is short, for all that packing does with it: checksum, header and sound."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ser_hpc.shards.containers.contents import BadClipError

UNREADABLE = "unreadable"
_SHORT = 1 << 22  # bytes: half a minute of CD sound
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An open file; equal to another of the same `version` (device, inode, bytes, time of its last change).

    `content`: all of it, where that was asked for and it is short.
    """

    descriptor: int = field(compare=False)
    version: tuple[int, int, int, int]
    content: memoryview | None = field(compare=False, default=None)

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self.version[2]

    def read(self, count: int, at: int) -> bytes | memoryview:
        """Return bytes from a place on; fewer at the end. Raises OSError."""
        return os.pread(self.descriptor, count, at) if self.content is None else self.content[at : at + count]

    def digest(self) -> str:
        """Return size and CRC-32. Raises OSError."""
        size, crc = 0, 0
        while content := self.read(_BLOCK, size):
            size, crc = size + len(content), zlib.crc32(content, crc)
        return f"{size} {crc:08x}"


@contextmanager
def open_source(path: Path, whole: bool = False) -> Iterator[SourceFile]:
    """Open a file to be read; `whole`: read it now, if it is short. Raises BadClipError where that fails, here or within."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            version = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            short = whole and status.st_size <= _SHORT and stat.S_ISREG(status.st_mode)
            yield SourceFile(descriptor, version, _all_of(descriptor, status.st_size) if short else None)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise BadClipError("is a link to a file that is not there" if path.is_symlink() else "does not exist") from None
    except OSError as error:
        raise BadClipError(f"cannot be read: {error.strerror or error}") from error


def digest_of(path: Path) -> str:
    """Return size and CRC-32 of a file, or "unreadable"."""
    try:
        with open_source(path) as source:
            return source.digest()
    except BadClipError:
        return UNREADABLE  # decoding will say why


def _all_of(descriptor: int, size: int) -> memoryview:
    """Read a file of about `size` bytes: to its end, also where it has grown or a read returns less than there is."""
    content = os.pread(descriptor, size + 1, 0)
    while len(content) != size and (more := os.pread(descriptor, _BLOCK, len(content))):
        content += more
    return memoryview(content)
