"""Check a FLAC file's header (length, format) against its frames: libsndfile stops where the header says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice

from ser_hpc.shards.containers.contents import AudioContents, BadClipError, behind_tag

_STREAMINFO = 8  # where it stands
_LARGEST = 1 << 19  # bytes at the end in which the last frame begins
_WINDOW, _HEADER = 1 << 20, 16  # bytes that are looked through at once; of a frame's header, at most
_SYNC = re.compile(rb"\xff[\xf8\xf9]|fLaC[\x00\x80]\x00\x00\x22")  # a frame, a file
_ID3V1 = 128  # bytes
_RATES = (0, 88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
_BITS = (0, 8, 12, 0, 16, 20, 24, 32)
_TOTAL = (1 << 36) - 1


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame's header: samples of the recording up to its start and end; a rate or bits of 0: as in STREAMINFO."""

    start: int
    end: int
    rate: int
    channels: int
    bits: int


def contents(file: int, head: bytes, size: int) -> AudioContents | None:
    """Find the sound of a FLAC file, also behind a tag; None for others. Raises BadClipError if cut, damaged or joined."""
    base = behind_tag(head, 0)
    head = os.pread(file, len(head), base)
    if head[:4] != b"fLaC" or len(head) < _STREAMINFO + 34 or head[4] & 0x7F:
        return None
    packed = int.from_bytes(head[18:26])
    rate, channels, bits, total = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & _TOTAL
    start = _first_frame(file, base, size)
    header = os.pread(file, _HEADER, start)
    first = _frame(header, 0)
    if first is None:
        raise BadClipError("is truncated, or has a damaged header: its sound does not begin where it says")
    if os.pread(file, 3, max(0, size - _ID3V1)) == b"TAG":
        size -= _ID3V1
    last = _last_frame(file, _frames(file, start, size, first.end), size, total)
    ends = last.end - last.start < first.end and not header[1] & 1  # where all have one length, a shorter one is the last
    if last.end < total and not ends:
        raise BadClipError(f"is truncated: its header announces {total} frames, the file holds {last.end}")
    doubt = ""
    if (last.rate or rate, last.channels, last.bits or bits) != (rate, channels, bits):
        doubt = (
            f"its header contradicts itself: {rate} Hz, {channels} channels, {bits} bits, "
            f"but a frame of {last.rate or rate} Hz, {last.channels} channels, {last.bits or bits} bits"
        )
    if last.end == total:
        return AudioContents(doubt=doubt)
    problem = f"announces {total} frames, but there are {last.end}" if total else "does not say how long it is"
    mended = head[:18] + (packed & ~_TOTAL | last.end).to_bytes(8) + head[26:42]
    return AudioContents(
        mended, base + len(mended), size, doubt="; ".join(filter(None, (f"its header {problem}: read to its end", doubt)))
    )


def _first_frame(file: int, base: int, size: int) -> int:
    """Return where the first frame begins, behind all blocks of metadata."""
    at, last = base + 4, False
    while at + 4 <= size and not last:
        block = os.pread(file, 4, at)
        last, at = block[0] >> 7 == 1, at + 4 + int.from_bytes(block[1:])
    return at


def _frames(file: int, start: int, end: int, block: int) -> list[tuple[int, _Frame]]:
    """Return where frames begin, and their headers. Raises BadClipError where another recording begins."""
    found: list[tuple[int, _Frame]] = []
    for at, frame in _signs(file, start, end, block):
        anew = found and found[-1][0] > start and found[-1][1].start == 0 and frame and frame.start == found[-1][1].end
        if frame is None or anew:
            raise BadClipError(
                "holds several recordings, one after the other, of which only the first would be read; part them"
            )
        found.append((at, frame))
    return found


def _signs(file: int, start: int, end: int, block: int) -> Iterator[tuple[int, _Frame | None]]:
    """Yield every place that may be a frame, with its header, or None for a file's beginning."""
    for base in range(start, end, _WINDOW):
        window = os.pread(file, min(_WINDOW + _HEADER, end - base), base)
        for match in _SYNC.finditer(window):
            at = match.start()
            frame = _frame(window[at : at + _HEADER], block)
            if at < _WINDOW and (frame is not None or window[at] != 0xFF):
                yield base + at, frame


def _last_frame(file: int, frames: list[tuple[int, _Frame]], size: int, total: int) -> _Frame:
    """Return the last of these frames, with which a file of this size ends. Raises BadClipError if it is not whole.

    It is whole by its checksum; where the header says that the recording ends with this frame, other data may follow it.
    """
    base = max(0, size - _LARGEST)
    tail = os.pread(file, size - base, base)[::-1].translate(_MIRRORED)  # all bits, from the last
    crc, done = 0, 0
    for at, frame in reversed(frames):
        if at < base:
            break
        for byte in tail[done : size - at]:
            crc = crc << 8 & 0xFF00 ^ _CRC16_BACK[crc >> 8 ^ byte]
        done = size - at
        if crc == 0:
            return frame
    for at, frame in (found for found in frames if found[1].end == total):
        content = os.pread(file, _LARGEST, at)
        crcs = accumulate(content, lambda crc, byte: crc << 8 & 0xFF00 ^ _CRC16[crc >> 8 ^ byte], initial=0)
        if 0 in islice(crcs, 8, None):
            return frame
    raise BadClipError(f"is truncated, or damaged: its last frame, of {len(frames)}, is not whole")


def _frame(head: bytes, block: int) -> _Frame | None:
    """Parse the header of the frame that begins with these bytes, None if none does."""
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
    return _Frame(first, first + samples, hertz, channels + 1 if channels < 8 else 2, _BITS[bits])


def _crc8(content: bytes) -> int:
    """Return the CRC-8: 0 for a frame's header with the checksum at its end."""
    crc = 0
    for byte in content:
        crc = _CRC8[crc ^ byte]
    return crc


def _table(polynomial: int, degree: int) -> tuple[int, ...]:
    """Make the CRC table: the remainder of each byte."""
    table = []
    for crc in (byte << degree - 8 for byte in range(256)):
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> degree - 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC8 = _table(0x107, 8)
_CRC16, _CRC16_BACK = _table(0x18005, 16), _table(0x14003, 16)  # a multiple of the one is, read from its end, one of the other
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
