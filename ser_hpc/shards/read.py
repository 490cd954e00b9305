"""Read clips in any order straight out of the tars: one read at the offset in the index, checked and decoded.

What reading needs of the index is an `Extent` a clip, so that a process that only reads never holds an index of millions.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ser_hpc.core.errors import UserError
from ser_hpc.shards.audio import BadClipError, decode_flac
from ser_hpc.shards.index import PACK_AGAIN, ShardIndex
from ser_hpc.shards.storage import Location, Url, read_ranges

_MAX_OPEN = 256  # of the 1024 files that a process may usually have open
_GAP = 1 << 20  # bytes read in vain rather than asking again: what passes while a busy file system or a store answers
_MOST = 32 << 20  # bytes of one read
Payload = bytes | OSError


class CorruptionCause(IntEnum):
    """What is wrong with a damaged clip; 0 means nothing."""

    CUT_OFF = 1
    CHANGED = 2
    UNDECODABLE = 3
    OTHER_LENGTH = 4

    @property
    def description(self) -> str:
        """A clause for error messages."""
        return {
            CorruptionCause.CUT_OFF: "the shard ends before it",
            CorruptionCause.CHANGED: "its bytes are not those that were packed (crc32)",
            CorruptionCause.UNDECODABLE: "it does not decode",
            CorruptionCause.OTHER_LENGTH: "it has another length than when it was packed",
        }[self]


class CorruptClipError(UserError):
    """Raised for a clip whose bytes are not those that were packed."""

    def __init__(self, message: str, cause: CorruptionCause) -> None:
        super().__init__(message)
        self.cause = cause

    def __reduce__(self) -> tuple[type[CorruptClipError], tuple[str, CorruptionCause]]:
        return CorruptClipError, (str(self), self.cause)


class Extent(NamedTuple):
    """Where a clip's payload lies, and what it must be. `dataset`: number of the folder that holds `tar`."""

    key: str
    dataset: int
    tar: str
    offset: int
    size: int
    num_samples: int
    crc32: int


def corruption_error(index: ShardIndex, position: int, cause: CorruptionCause) -> CorruptClipError:
    """Make the error that reading the clip at `position` gives for `cause`."""
    (extent,) = clip_extents(index, [position])
    return _corrupt(extent, index.roots[extent.dataset], cause)


def clip_extents(index: ShardIndex, positions: np.ndarray | Sequence[int]) -> list[Extent]:
    """Return the extents of the clips at `positions`, in that order."""
    numbers = index.shard[positions].tolist()
    columns = (column[positions].tolist() for column in (index.offset, index.size, index.num_samples, index.crc32))
    return [
        Extent(index.key(position), index.dataset[number], index.shards[number].path, *row)
        for position, number, *row in zip(positions, numbers, *columns, strict=True)
    ]


class ClipReader:
    """Reads clips by their extents, from any number of threads; pickled for another process without its open files.

    `originals`: each dataset's own folder; `copies`: folders with copies of the tars that will be read, on a faster disk; where
    one fails, the original serves. `coalesce`: clips asked for together that lie near each other come with one read, which pays
    on parallel file systems; from a store they always do.
    """

    def __init__(self, originals: Sequence[Location], copies: Sequence[Location] = (), *, coalesce: bool = False) -> None:
        self._originals, self._places, self._coalesce = tuple(originals), tuple(copies or originals), coalesce
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, extents: Sequence[Extent], payloads: Sequence[Payload] | None = None) -> list[np.ndarray | CorruptClipError]:
        """Return each clip's samples, int16 (num_samples,) at 16 kHz, or the error that says what is wrong with it.

        `payloads`: what `fetch` returned for them; none: they are fetched now. Raises UserError if a shard cannot be read at
        all: a fault of the file system, not of the clip, which may pass.
        """
        fetched = self.fetch(extents) if payloads is None else payloads
        return [self._clip(extent, payload) for extent, payload in zip(extents, fetched, strict=True)]

    def holds(self, extent: Extent) -> bool:
        """Tell whether a clip is read without its payload."""
        return False

    def close(self) -> None:
        """Close the open tars; reading opens them again."""
        with self._lock:
            self._files.clear()

    def __reduce__(self) -> tuple[object, ...]:
        return _reader, (self._originals, self._places, self._coalesce)

    def _clip(self, extent: Extent, payload: Payload) -> np.ndarray | CorruptClipError:
        location, original = self._places[extent.dataset], self._originals[extent.dataset]
        found = decode_clip(extent, payload, location)
        if isinstance(found, UserError) and location != original:  # only the copy is damaged, or was cleaned away
            found = decode_clip(extent, self._payload(original, extent), original)
        if isinstance(found, UserError) and not isinstance(found, CorruptClipError):
            raise found
        return found

    def _payload(self, location: Location, extent: Extent) -> Payload:
        try:
            if isinstance(location, Url):
                return read_ranges([(location / extent.tar, extent.offset, extent.offset + extent.size)])[0]
            return os.pread(self._file(location / extent.tar).descriptor, extent.size, extent.offset)
        except OSError as error:
            return error

    def fetch(self, wanted: Sequence[Extent]) -> list[Payload]:
        """Return each clip's bytes (fewer, if its shard ends early), or the error that reading them gave.

        Raises UserError if a store does not answer.
        """
        remote = any(isinstance(location, Url) for location in self._places)
        if not (self._coalesce or remote):
            return [self._payload(self._places[extent.dataset], extent) for extent in wanted]
        spans = find_spans(wanted)
        found: list[Payload] = [b""] * len(wanted)
        for members, content in zip(spans, self._contents([_whole(wanted, members) for members in spans]), strict=True):
            start = wanted[members[0]].offset
            for i in members:
                begin = wanted[i].offset - start
                found[i] = content if isinstance(content, OSError) else content[begin : begin + wanted[i].size]
        return found

    def _contents(self, spans: Sequence[Extent]) -> list[Payload]:
        """Read spans, those from a store all at once: each answer takes its time, but many come as fast as one."""
        places = [self._places[span.dataset] for span in spans]
        requested = [(i, location / spans[i].tar) for i, location in enumerate(places) if isinstance(location, Url)]
        found: list[Payload | None] = [None] * len(spans)
        ranges = [(url, spans[i].offset, spans[i].offset + spans[i].size) for i, url in requested]
        with suppress(FileNotFoundError):  # then one by one, to know which
            for (i, _), content in zip(requested, read_ranges(ranges), strict=True):
                found[i] = content
        return [
            self._payload(location, span) if content is None else content
            for location, span, content in zip(places, spans, found, strict=True)
        ]

    def _file(self, tar: Path) -> _File:
        with self._lock:
            file = self._files.pop(tar, None) or _File(tar)
            self._files[tar] = file  # the latest used stands last
            if len(self._files) > _MAX_OPEN:
                self._files.popitem(last=False)
            return file


class ShardReader:
    """Reads clips of an index by position. A context manager: leaving it closes its files. `copies`: see ClipReader."""

    def __init__(self, index: ShardIndex, copies: Sequence[Location] = ()) -> None:
        self.index = index
        self._clips = ClipReader(index.roots, copies)

    def read(self, position: int) -> np.ndarray:
        """Return a clip's samples, int16 (num_samples,) at 16 kHz. Raises CorruptClipError; UserError if the shard is gone."""
        (found,) = self._clips.read(clip_extents(self.index, [position]))
        if isinstance(found, CorruptClipError):
            raise found
        return found

    def close(self) -> None:
        """Close the open tars."""
        self._clips.close()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _reader(originals: Sequence[Location], copies: Sequence[Location], coalesce: bool) -> ClipReader:
    return ClipReader(originals, copies, coalesce=coalesce)


def decode_clip(extent: Extent, payload: Payload, location: Location) -> np.ndarray | UserError:
    """Decode a clip to int16 (num_samples,) at 16 kHz; or return the error, in words, where it is not what was packed.

    `payload`: its bytes (fewer, if its shard ends early), or the error that reading them gave.
    """
    if isinstance(payload, OSError):
        reason = payload.strerror or payload
        return UserError(f"shard {location / extent.tar} cannot be read ({reason}); is its file system still there?")
    if len(payload) != extent.size:
        return _corrupt(extent, location, CorruptionCause.CUT_OFF)
    if zlib.crc32(payload) != extent.crc32:
        return _corrupt(extent, location, CorruptionCause.CHANGED)
    try:
        samples = decode_flac(payload)
    except BadClipError as error:
        return _corrupt(extent, location, CorruptionCause.UNDECODABLE, f" ({error})")
    if len(samples) != extent.num_samples:
        return _corrupt(
            extent, location, CorruptionCause.OTHER_LENGTH, f" ({len(samples)} samples instead of {extent.num_samples})"
        )
    return samples


def _corrupt(extent: Extent, location: Location, cause: CorruptionCause, more: str = "") -> CorruptClipError:
    clip = f"clip {extent.key} in shard {location / extent.tar} is damaged: {cause.description}{more}"
    return CorruptClipError(f"{clip}. Find all damage: python -m ser_hpc.shards.verify {location}; then {PACK_AGAIN}", cause)


def find_spans(wanted: Sequence[Extent]) -> list[list[int]]:
    """Group the clips that one read brings, in their order on disk: neighbours in a tar with at most `_GAP` bytes between."""
    if not wanted:
        return []
    order = sorted(range(len(wanted)), key=lambda i: wanted[i][1:4])
    spans = [[order[0]]]
    for before, i in pairwise(order):
        a, b = wanted[before], wanted[i]
        near = (a.dataset, a.tar) == (b.dataset, b.tar) and b.offset - (a.offset + a.size) <= _GAP
        if near and b.offset + b.size - wanted[spans[-1][0]].offset <= _MOST:
            spans[-1].append(i)
        else:
            spans.append([i])
    return spans


def _whole(wanted: Sequence[Extent], members: Sequence[int]) -> Extent:
    first, last = wanted[members[0]], wanted[members[-1]]
    return first._replace(size=last.offset + last.size - first.offset)


class _File:
    """A descriptor that closes with its last user: dropping it from the table never pulls it away under a reading thread."""

    def __init__(self, path: os.PathLike[str]) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
