"""Clips at random, straight out of the tars: one `pread` at the offset that the index knows, checked and decoded."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ser_hpc.errors import UserError
from ser_hpc.shards.audio import BadClipError, decode_flac
from ser_hpc.shards.index import PACK_AGAIN, ShardIndex

_MAX_OPEN = 256  # of the 1024 files that a process may usually have open


class CorruptClipError(UserError):
    """A clip whose bytes are not those that were packed."""


class ShardReader:
    """Reads clips of an index by position, from any number of threads. A context manager: leaving it closes its files.

    `roots`: for each dataset a folder with copies of the tars that will be read, on a faster disk; where one fails, the
    index's own serves.
    """

    def __init__(self, index: ShardIndex, roots: Sequence[Path] = ()) -> None:
        self.index = index
        self.roots = tuple(roots) or index.roots
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, position: int) -> np.ndarray:
        """The clip's samples, int16 (num_samples,) at 16 kHz.

        Raises CorruptClipError if the payload's crc32 is wrong or it does not decode, UserError if the shard is gone.
        """
        number = self.index.shard[position]
        tar, dataset = self.index.shards[number].path, self.index.dataset[number]
        root, original = self.roots[dataset], self.index.roots[dataset]
        try:
            return self._read(root / tar, position)
        except UserError:
            if root == original:
                raise
            return self._read(original / tar, position)  # only the copy is damaged, or was cleaned away

    def _read(self, tar: Path, position: int) -> np.ndarray:
        index = self.index
        payload = self._payload(tar, int(index.offset[position]), int(index.size[position]))
        if len(payload) != index.size[position]:
            raise self._corrupt(tar, position, "the shard ends before it")
        if zlib.crc32(payload) != index.crc32[position]:
            raise self._corrupt(tar, position, "its bytes are not those that were packed (crc32)")
        try:
            samples = decode_flac(payload)
        except BadClipError as error:
            raise self._corrupt(tar, position, str(error)) from error
        if len(samples) != index.num_samples[position]:
            raise self._corrupt(tar, position, f"it has {len(samples)} samples instead of {index.num_samples[position]}")
        return samples

    def close(self) -> None:
        with self._lock:
            self._files.clear()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[ShardReader], tuple[ShardIndex, tuple[Path, ...]]]:
        return ShardReader, (self.index, self.roots)  # to a worker process: the index travels, open files do not

    def _payload(self, tar: Path, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._file(tar).descriptor, size, offset)
        except OSError as error:
            raise UserError(f"shard {tar} cannot be read ({error.strerror}); is its file system still there?") from error

    def _file(self, tar: Path) -> _File:
        with self._lock:
            file = self._files.pop(tar, None) or _File(tar)
            self._files[tar] = file  # the latest used stands last
            if len(self._files) > _MAX_OPEN:
                self._files.popitem(last=False)
            return file

    def _corrupt(self, tar: Path, position: int, what: str) -> CorruptClipError:
        clip = f"clip {self.index.key(position)} in shard {tar} is damaged: {what}"
        dataset = self.index.roots[self.index.dataset[self.index.shard[position]]]
        return CorruptClipError(f"{clip}. Find all damage: python -m ser_hpc.shards.verify {dataset}; then {PACK_AGAIN}")


class _File:
    """A descriptor that closes with its last user: dropping it from the table never pulls it away under a reading thread."""

    def __init__(self, path: os.PathLike[str]) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
