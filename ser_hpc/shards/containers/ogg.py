"""Check the pages of an Ogg file by checksum and number: libsndfile passes over damage, and reads only the first of joined
files."""

from __future__ import annotations

import os
import struct
import zlib

from ser_hpc.shards.containers.contents import TAGS, AudioContents, BadClipError

_FIRST, _LAST = 2, 4  # of a page's flags: the first of its stream, the last
_PAGE = 27 + 255 + 255 * 255  # bytes at most
_WINDOW = 1 << 20
_NO_POSITION = (1 << 64) - 1  # of a page in which no packet ends
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def contents(file: int, head: bytes, size: int) -> AudioContents | None:
    """Find the sound of an Ogg file, None for others. Raises BadClipError if it is cut, damaged, or of several recordings."""
    if head[:4] != b"OggS":
        return None
    at, base, window = 0, 0, b""
    numbers: dict[int, int] = {}  # of the next page, by stream
    doubts, flags, sound_began = [], 0, False
    ends = [0, 0]  # of the sound of the two last pages, in frames
    while at < size:
        if at + _PAGE > base + len(window) and base + len(window) < size:
            window, base = os.pread(file, min(_WINDOW, size - at), at), at
        page = _page(window[at - base : at - base + _PAGE])
        if page is None:
            rest = window[at - base :]
            if rest.startswith(b"OggS"):
                raise BadClipError("is truncated: its last page is not whole")
            if not rest.startswith(TAGS) and any(rest):
                doubts.append(f"{size - at} bytes at its end are no Ogg: not read")
            break
        flags, serial, number = page[5], *struct.unpack_from("<II", page, 14)
        if flags & _FIRST and sound_began:
            raise BadClipError(
                "holds several recordings, one after the other, of which only the first would be read; part them"
            )
        sound_began = not flags & _FIRST
        if number != numbers.setdefault(serial, number):
            doubts.append(f"lacks pages before its page {number}")
        numbers[serial] = number + 1
        if (end := struct.unpack_from("<Q", page, 6)[0]) != _NO_POSITION:
            ends = [ends[1], end]
        if _checksum(page) != struct.unpack_from("<I", page, 22)[0]:
            raise BadClipError(f"is damaged: the page at its byte {at} is not as it was written (checksum)")
        at += len(page)
    if not flags & _LAST:
        doubts.append("its last page is not marked as such (cut off, or its recorder was stopped): read to its end")
    # The last page of Vorbis ends where the sound does, not where its last packet does: a seek into it misses by as much.
    # One whose beginning was cut off counts its frames from there.
    sought = (max(0, ends[0] - 1), ends[1]) if head[28:35] == b"\x01vorbis" else None
    return AudioContents(doubt="; ".join(doubts), sought=sought)


def _page(window: bytes) -> bytes | None:
    """Return the page at the beginning of these bytes, None if there is no whole one."""
    if window[:4] != b"OggS" or len(window) < 27 or len(window) < 27 + window[26]:
        return None
    length = 27 + window[26] + sum(window[27 : 27 + window[26]])
    return window[:length] if length <= len(window) else None


def _checksum(page: bytes) -> int:
    """Return the CRC-32 with the bits of each byte and of the result in the other order than zlib's, and nothing inverted."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    crc = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_MIRRORED), "big")
