"""FLAC: its header's length and format, held against its last frame. libsndfile stops where the header says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ser_hpc.shards.containers.contents import Contents

_STREAMINFO = 8  # where it stands
_TAIL, _LARGEST = 1 << 15, 1 << 19  # bytes at the end in which the last frame begins
_SYNC = re.compile(b"\xff[\xf8\xf9]")
_RATES = (0, 88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
_BITS = (0, 8, 12, 0, 16, 20, 24, 32)
_TOTAL = (1 << 36) - 1


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a frame's header tells. `end`: samples of the recording up to its end; 0 for a rate or bits: as in STREAMINFO."""

    end: int
    rate: int
    channels: int
    bits: int


def contents(file: int, head: bytes, size: int) -> Contents | None:
    """Of a FLAC file, None for others, and for one that is not understood."""
    if head[:4] != b"fLaC" or len(head) < _STREAMINFO + 34 or head[4] & 0x7F:
        return None
    largest, packed = int.from_bytes(head[15:18]), int.from_bytes(head[18:26])
    rate, channels, bits, total = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & _TOTAL
    first = _first_frame(file, size)
    windows = (largest, _TAIL, _LARGEST) if largest else (_TAIL, _LARGEST)
    tails = (os.pread(file, window, max(0, size - window)) for window in windows)
    last = first and next(filter(None, (_last_frame(tail, first.end, total) for tail in tails)), None)
    if last is None:
        return None
    doubt = ""
    if (last.rate or rate, last.channels, last.bits or bits) != (rate, channels, bits):
        doubt = (
            f"its header contradicts itself: {rate} Hz, {channels} channels, {bits} bits, "
            f"but a frame of {last.rate or rate} Hz, {last.channels} channels, {last.bits or bits} bits"
        )
    if last.end == total:
        return Contents(doubt=doubt)
    told = f"announces {total} frames, but there are {last.end}" if total else "does not say how long it is"
    mended = head[:18] + (packed & ~_TOTAL | last.end).to_bytes(8) + head[26:42]
    return Contents(mended, len(mended), size, doubt="; ".join(filter(None, (f"its header {told}: read to its end", doubt))))


def _first_frame(file: int, size: int) -> _Frame | None:
    """The frame behind all blocks of metadata."""
    at, last = 4, False
    while at + 4 <= size and not last:
        block = os.pread(file, 4, at)
        last, at = block[0] >> 7 == 1, at + 4 + int.from_bytes(block[1:])
    return _frame(os.pread(file, 16, at), 0)


def _last_frame(tail: bytes, block: int, total: int) -> _Frame | None:
    """The last frame of a file that ends with these bytes; None if it cannot be found.

    One that ends where the header says the recording ends needs no further proof; another one, its checksum.
    """
    starts = [match.start() for match in _SYNC.finditer(tail)][::-1]
    found = [(at, frame) for at in starts if (frame := _frame(tail[at : at + 16], block)) is not None]
    if any(frame.end == total for _, frame in found):
        return next(frame for _, frame in found if frame.end == total)
    return next((frame for at, frame in found if _crc16(tail[at:]) == 0), None)


def _frame(head: bytes, block: int) -> _Frame | None:
    """The frame that begins with these bytes, None if none does."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    size, rate, channels, bits = head[2] >> 4, head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
    if size == 0 or rate == 15 or channels > 10 or bits == 3:
        return None
    ones = next((bit for bit in range(8) if not head[4] << bit & 0x80), 8)  # UTF-8: of the bytes that follow, 6 bits each
    at = 4 + (ones or 1)
    number = head[4] & 0x7F >> ones
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    if size in (6, 7):
        samples = int.from_bytes(head[at : at + size - 5]) + 1
        at += size - 5
    else:
        samples = 192 if size == 1 else 576 << size - 2 if size < 6 else 256 << size - 8
    hertz = _RATES[rate] if rate < 12 else int.from_bytes(head[at : at + min(2, rate - 11)]) * (1000, 1, 10)[rate - 12]
    at += min(2, rate - 11) if rate >= 12 else 0
    if ones in (1, 8) or at >= len(head) or _crc8(head[: at + 1]):
        return None
    first = number if head[1] & 1 else number * block
    return _Frame(first + samples, hertz, channels + 1 if channels < 8 else 2, _BITS[bits])


def _crc8(content: bytes) -> int:
    """0 for a frame's header with the checksum at its end."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc


def _crc16(content: bytes) -> int:
    """0 for a frame with the checksum at its end."""
    crc = 0
    for byte in content:
        crc ^= byte << 8
        for _ in range(8):
            crc = crc << 1 ^ (0x18005 if crc & 0x8000 else 0)
    return crc
