"""Check the sizes in headers of WAV and its kin (RIFF, RIFX, RF64, BW64), which recorders often write wrong.

libsndfile takes what a file lacks for its end, a size of 0 for silence, and bytes behind the announced ones for nothing. Here
the sizes of the data, of the RIFF around it and of the file itself are held against each other; and the fields of the format.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace

from ser_hpc.shards.containers import mpeg
from ser_hpc.shards.containers.contents import TAGS, AudioContents, BadClipError, settle

_LONG = (b"RF64", b"BW64")
_PCM, _FLOAT, _ALAW, _ULAW, _MP3, _EXTENSIBLE = 1, 3, 6, 7, 0x55, 0xFFFE
_BLOCK = 1 << 20
_LONGEST_FORMAT = 1024


@dataclass(frozen=True, slots=True)
class _Header:
    """A parsed header. `at`: where the data chunk begins; `data`, `riff`: sizes as they are announced."""

    order: str
    at: int
    data: int
    riff: int
    format: bytes
    unpadded: bool


def contents(file: int, head: bytes, size: int) -> AudioContents | None:
    """Find the sound of a WAV file, None for others. Raises BadClipError if it is truncated or its header is broken."""
    if head[:4] not in (b"RIFF", b"RIFX", *_LONG) or head[8:12] != b"WAVE":
        return None
    header = _read(file, head, size)
    start = header.at + 8
    present = size - start
    ends_well = size - 1 <= header.riff + 8 <= size + 1
    length, doubt = header.data, ""
    if length or not _chunks_follow(file, start, size):
        length, doubt = settle(length, present, start, ends_well)
    if length < present and not doubt and not any(_chunks_follow(file, start + length + pad, size) for pad in (length % 2, 0)):
        if ends_well or present % (1 << 32) == length:
            doubt = f"its header announces {present - length} bytes of sound less than there are: read to its end"
            length = present
        else:
            doubt = f"{present - length} bytes follow its sound that its header does not announce: not read"
    doubt = "; ".join(filter(None, (doubt, _contradiction(header))))
    tag = _tag(header)
    if tag == _MP3 and (found := mpeg.contents(file, start, start + length)):
        return replace(found, doubt="; ".join(filter(None, (doubt, found.doubt))))
    if length <= header.data and not header.unpadded:  # where there is less, libsndfile reads what is there
        return AudioContents(doubt=doubt)
    return AudioContents(_plain(header, length), start, start + length, doubt=doubt)


def _read(file: int, head: bytes, size: int) -> _Header:
    order = ">" if head.startswith(b"RIFX") else "<"
    riff, long, form, at = struct.unpack_from(order + "I", head, 4)[0], None, b"", 12
    unpadded = False
    while at + 8 <= size:
        chunk = head[at : at + 48] if at + 48 <= len(head) else os.pread(file, 48, at)
        name, length = struct.unpack_from(order + "4sI", chunk)
        if not _is_name(name):
            if at % 2 == 0 and _is_name(os.pread(file, 4, at - 1)):  # a writer that forgot to pad an odd chunk
                at, unpadded = at - 1, True
                continue
            raise BadClipError(f"has a damaged header, or is truncated: nothing known at its byte {at}")
        if name == b"ds64":
            long = struct.unpack_from("<QQ", chunk, 8)
        elif name == b"fmt ":
            form = os.pread(file, min(length, _LONGEST_FORMAT), at + 8)
        elif name == b"data":
            if long and head.startswith(_LONG):
                riff, length = (mine if mine < 0xFFFFFFFF else its for mine, its in zip((riff, length), long, strict=True))
            return _Header(order, at, length, riff, form, unpadded)
        at += 8 + length + length % 2
    raise BadClipError("is truncated, or has a damaged header: it ends before its sound begins")


def _plain(header: _Header, length: int) -> bytes:
    """Make a header of the format and the true size of the data. The largest size is libsndfile's "to the end"."""
    data = struct.pack(header.order + "4sI", b"data", min(length, 0xFFFFFFFF))
    form = struct.pack(header.order + "4sI", b"fmt ", len(header.format)) + header.format
    size = struct.pack(header.order + "I", min(4 + len(form) + len(data) + length, 0xFFFFFFFF))
    return (b"RIFF" if header.order == "<" else b"RIFX") + size + b"WAVE" + form + data


def _chunks_follow(file: int, at: int, end: int) -> bool:
    """Return whether nothing but chunks, tags of players or padding lies between two bytes."""
    while at + 8 <= end:
        name, length = struct.unpack("<4sI", os.pread(file, 8, at))
        if name.startswith(TAGS) or (not any(name) and _only_zeros(file, at, end)):
            return True
        if not _is_name(name) or at + 8 + length > end:
            return False
        at += 8 + length + length % 2
    return True


def _only_zeros(file: int, at: int, end: int) -> bool:
    blocks = (os.pread(file, min(_BLOCK, end - start), start) for start in range(at, end, _BLOCK))
    return all(block.count(0) == len(block) for block in blocks)


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _tag(header: _Header) -> int:
    """Return the tag of the format: PCM, float and so on."""
    form = header.format
    tag: int = struct.unpack_from(header.order + "H", form.ljust(2, b"\0"))[0]
    return int.from_bytes(form[24:26], "little") if tag == _EXTENSIBLE and len(form) >= 26 else tag


def _contradiction(header: _Header) -> str:
    """Return a message if the fields of the format contradict each other: at least one is wrong, nobody knows which."""
    if len(header.format) < 16:
        return ""
    _, channels, rate, byte_rate, align, bits = struct.unpack_from(header.order + "HHIIHH", header.format)
    tag, width = _tag(header), -(-bits // 8)
    if tag in (_PCM, _FLOAT, _ALAW, _ULAW):
        fits = align in (channels * width, channels * 4 if bits == 24 else 0) and byte_rate == rate * align
        fits = fits and (bits == 8 or tag in (_PCM, _FLOAT))
    else:
        fits = bits < 16 or tag == _MP3  # in blocks of several frames; as to the rest, programs differ in what they write
    if fits:
        return ""
    return (
        f"its header contradicts itself: {rate} Hz, {channels} channels, {bits} bits, but frames of {align} bytes and "
        f"{byte_rate} bytes a second"
    )
