"""Open a source file once, for all that packing does with it: its checksum, its header and its sound."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ser_hpc.shards.containers.contents import BadClipError

UNREADABLE = "unreadable"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An open file; equal to another of the same `version` (device, inode, bytes, time of its last change)."""

    descriptor: int = field(compare=False)
    version: tuple[int, int, int, int]

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self.version[2]

    def digest(self) -> str:
        """Return size and CRC-32. Raises OSError."""
        size, crc = 0, 0
        while content := os.pread(self.descriptor, min(_BLOCK, self.size + 1), size):
            size, crc = size + len(content), zlib.crc32(content, crc)
        return f"{size} {crc:08x}"


@contextmanager
def open_source(path: Path) -> Iterator[SourceFile]:
    """Open a file to be read. Raises BadClipError where that fails, here or within the block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            yield SourceFile(descriptor, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
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
