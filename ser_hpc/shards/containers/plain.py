"""Check the announced size of AIFF, AU, CAF, Wave64 and NIST SPHERE against the file: libsndfile reads what is left."""

from __future__ import annotations

import os
import re
import struct
from typing import NamedTuple

from ser_hpc.shards.containers.contents import TAGS, AudioContents, BadClipError, settle

_REST = 1 << 20  # bytes behind the sound that are looked at
_W64_HEAD = b"riff\x2e\x91\xcf\x11"


class _Sound(NamedTuple):
    """The sound by its header. `start`: first byte; `announced`: bytes; `whole`: another size says that none is missing."""

    start: int
    announced: int
    doubt: str = ""
    whole: bool = False


def contents(file: int, head: bytes, size: int) -> AudioContents | None:
    """Find the sound of a file of one of these formats, None for others. Raises BadClipError if it is truncated."""
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        sound = _aiff(file, size)
    elif head[:4] == b".snd" and len(head) >= 24:
        sound = _Sound(*struct.unpack_from(">II", head, 4))
    elif head[:4] == b"caff":
        return _caf(file, size)
    elif head[:8] == _W64_HEAD:
        sound = _w64(file, size)
    elif head[:8] == b"NIST_1A\n":
        sound = _nist(head, size)
    else:
        return None
    if sound.start > size:
        raise BadClipError("is truncated: it ends before its sound begins")
    length, doubt = settle(sound.announced, size - sound.start, sound.start, sound.whole)
    doubt, end = "; ".join(filter(None, (doubt, sound.doubt))), sound.start + length
    if end >= size or head[:4] == b"FORM" or doubt:
        return AudioContents(doubt=doubt)
    if not _is_known(file, end, size, is_w64=head[:8] == _W64_HEAD):
        doubt = f"{size - end} bytes follow its sound that its header does not announce: not read"
    return AudioContents(os.pread(file, sound.start, 0), sound.start, end, doubt=doubt)  # libsndfile would read them as sound


def _is_known(file: int, at: int, size: int, is_w64: bool) -> bool:
    """Return whether the rest of the file is a tag, padding, or chunks of Wave64."""
    rest = os.pread(file, min(_REST, size - at), at)
    if rest.startswith(TAGS) or not any(rest):
        return True
    aligned = -(-at // 8) * 8
    chunk = rest[aligned - at : aligned - at + 24]
    return is_w64 and len(chunk) == 24 and 24 <= int.from_bytes(chunk[16:], "little") <= size - aligned


def _aiff(file: int, size: int) -> _Sound:
    at, frames, frame = 12, 0, 0
    whole = size - 1 <= int.from_bytes(os.pread(file, 4, 4)) + 8 <= size + 1
    while at + 8 <= size:
        name, length = struct.unpack(">4sI", os.pread(file, 8, at))
        if name == b"COMM":
            channels, frames, bits = struct.unpack(">hIh", os.pread(file, 8, at + 8))
            kind = os.pread(file, 4, at + 26) if length > 18 else b"NONE"
            frame = channels * -(-bits // 8) if kind in (b"NONE", b"sowt", b"twos") else 0
        if name == b"SSND":
            sound = max(0, length - 8)  # behind an offset and a block size
            differs = frame and sound and sound // frame != frames
            doubt = f"its header announces {frames} frames, but {sound} bytes of sound" if differs else ""
            return _Sound(at + 16, sound, doubt, whole)
        at += 8 + length + length % 2
    raise BadClipError("is truncated, or has a damaged header: it ends before its sound begins")


def _w64(file: int, size: int) -> _Sound:
    at = 40
    while at + 24 <= size:
        name, length = struct.unpack("<16sQ", os.pread(file, 24, at))  # which counts name and size as well
        if name.startswith(b"data"):
            return _Sound(at + 24, max(0, length - 24))
        at += max(24, -(-length // 8) * 8)
    raise BadClipError("is truncated, or has a damaged header: it ends before its sound begins")


def _nist(head: bytes, size: int) -> _Sound:
    number = {name: int(value) for name, value in re.findall(rb"^(\w+) -i (\d+)", head, re.MULTILINE)}
    start = int(head[8:16]) if head[8:16].strip().isdigit() else 1024
    announced = number.get(b"sample_count", 0) * number.get(b"channel_count", 1) * number.get(b"sample_n_bytes", 1)
    return _Sound(start, announced if b"shorten" not in head and b"sample_count" in number else size - start)


def _caf(file: int, size: int) -> AudioContents:
    """Find the sound of a CAF file; libsndfile refuses one with another size of the data than there is."""
    at = 8
    while at + 12 <= size:
        name, length = struct.unpack(">4sQ", os.pread(file, 12, at))
        if name == b"data":
            present = size - at - 12
            length, doubt = settle(length, present, at + 12)
            if not doubt:
                return AudioContents()
            return AudioContents(os.pread(file, at + 4, 0) + struct.pack(">Q", length), at + 12, size, doubt=doubt)
        at += 12 + length
    raise BadClipError("is truncated, or has a damaged header: it ends before its sound begins")
