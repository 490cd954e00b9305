"""Count the frames of MPEG audio (MP3 and its kin): headers need not say how many there are, and many are wrong.

Without a Xing frame libsndfile guesses the length from the size of the first frame and stops reading there; with one it
believes it, also where files were joined behind it. So the frames are walked over (their headers, nothing is decoded), and
where libsndfile would read another number of them, it gets a Xing frame that is right.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from ser_hpc.shards.containers.contents import TAGS, AudioContents, BadClipError, behind_tag

_KBITS = {  # by version 1 or not, and layer
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by the version's two bits
_ALIKE = 0xFFFE0C00  # sync, version, layer and rate: what all frames of a file have in common, and mono or stereo
_FRAMES = 1  # of a Xing frame's flags: it tells a number of frames
_UNPROTECTED = 1 << 16  # of a frame's header: no checksum follows
_NOT_ANNOUNCED = -1
_WINDOW = 1 << 20
_LEAD = 1 << 16  # bytes between an ID3 tag and the first frame: padding that the tag did not count


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of a file: bytes `start` to `end`; `count` of `samples` each, without a Xing frame, which is at `first`.

    `announced`: frames by its Xing frame, None where there is none; `heeded`: whether libsndfile sees it; `gaps`: what
    stands between frames (from, to); `skipped`: bytes of it, and before and behind them, that are no tags either; `lacking`:
    bytes that its last frame lacks.
    """

    first: int
    start: int
    end: int
    count: int
    samples: int
    layer: int
    header: int
    announced: int | None
    heeded: bool
    gaps: tuple[tuple[int, int], ...]
    skipped: int
    lacking: int

    def xing_frame(self) -> bytes:
        """Return a Xing frame: silence with the number of frames. Only layer III has such."""
        header = self.header & ~0xF200 | 0xE000 | 0x10000  # the largest, so that all fits; no padding, no checksum
        side = _side_bytes(header)
        frame = struct.pack(">I", header) + bytes(side) + b"Xing" + struct.pack(">II", _FRAMES, self.count)
        return frame.ljust(_frame_bytes(header), b"\0")

    def padding(self) -> int:
        """Return how many bytes before the frames make libsndfile's guess (bytes over the first frame's size) long enough.

        Raises BadClipError where that would be too many.
        """
        present = self.end - self.start - sum(end - start for start, end in self.gaps)
        lacking = _frame_bytes(self.header) * self.count - present
        if lacking > _LEAD:
            raise BadClipError(f"is MPEG layer {self.layer} of variable rate, which cannot be read; convert it to WAV or FLAC")
        return max(0, lacking)


def contents(file: int, start: int, end: int) -> AudioContents | None:
    """Find MPEG audio between two bytes of an open file, None for other data. Raises BadClipError if frames are missing."""
    found = frames(file, start, end)
    if found is None:
        return None
    if found.lacking:
        raise BadClipError(f"is truncated: its last frame lacks {found.lacking} bytes")
    doubts = [f"{found.skipped} bytes before, between or behind its frames are no sound: not read"] if found.skipped else []
    announced = found.announced
    if announced is not None and announced > found.count + 1:
        raise BadClipError(f"is truncated: its header announces {announced} frames, the file holds {found.count}")
    if announced == found.count and found.heeded:
        as_it_is = not found.gaps and (start > 0 or os.pread(file, 3, 0) == b"ID3")
        return AudioContents(b"" if as_it_is else _id3(0), found.first, end, doubt="; ".join(doubts), gaps=found.gaps)
    if announced not in (None, _NOT_ANNOUNCED, found.count):
        doubts.append(f"its header announces {announced} frames, but there are {found.count}: read to its end")
    head, length = (
        (_id3(0) + found.xing_frame(), None) if found.layer == 3 else (_id3(found.padding()), found.count * found.samples)
    )
    return AudioContents(head, found.start, found.end, length, "; ".join(doubts), gaps=found.gaps)


def frames(file: int, start: int, end: int) -> Frames | None:
    """Find the MPEG frames between two bytes of an open file, behind ID3 tags; None if it does not begin with such."""
    tagged = start
    while (behind := behind_tag(os.pread(file, _LEAD, start), start)) > start:
        start = behind
    first = _next(file, start, min(end, start + _LEAD) if start > tagged else start + 1, end, 0)
    if first is None:
        return None
    header = int.from_bytes(os.pread(file, 4, first))
    announced, heeded, size = _announced(file, first, header)
    count, gaps, skipped, lacking, last = _walk(file, first + size, end, header)
    layer = 4 - (header >> 17 & 3)
    samples = 384 if layer == 1 else 576 if layer == 3 and not _is_version_1(header) else 1152
    skipped += first - start if any(os.pread(file, first - start, start)) else 0
    return Frames(first, first + size, last, count, samples, layer, header, announced, heeded, gaps, skipped, lacking)


def _walk(file: int, at: int, end: int, like: int) -> tuple[int, tuple[tuple[int, int], ...], int, int, int]:
    """Return number of frames, gaps between them, bytes that are no sound, bytes that the last one lacks, and their end."""
    count, skipped = 0, 0
    gaps: list[tuple[int, int]] = []
    sizes: dict[bytes, int] = {}
    window, base = b"", at
    while at + 4 <= end:
        if at + 4 > base + len(window):
            window, base = os.pread(file, min(_WINDOW, end - at), at), at
        header = window[at - base : at - base + 4]
        if (size := sizes.get(header)) is None:
            number = int.from_bytes(header)
            size = sizes[header] = _frame_bytes(number) if _alike(number, like) else 0
        if size and at + size > end:
            return count, tuple(gaps), skipped, at + size - end, end
        if size:
            count, at = count + 1, at + size
            continue
        following, junk = _pass_over(file, at, end, like)
        skipped += junk
        if following is None:
            break
        gaps.append((at, following))
        at = following
        if not base <= at < base + len(window):
            window, base = b"", at
    return count, tuple(gaps), skipped, 0, at


def _pass_over(file: int, at: int, end: int, like: int) -> tuple[int | None, int]:
    """Return where frames go on behind other data (None: nowhere), and how much of it is neither tag nor a tag's padding.

    Raises BadClipError where frames of another kind follow.
    """
    padding = 0
    while at < end:
        rest = os.pread(file, min(_WINDOW, end - at), at)
        behind = behind_tag(rest, at)
        if at < behind <= end:
            at, padding = behind, 0
        elif zeros := len(rest) - len(rest.lstrip(b"\0")):
            at, padding = at + zeros, padding + zeros
        else:
            break
    following = _next(file, at, end, end, 0)
    if following is not None and not _alike(other := _header(file, following), like):
        if _next(file, following + _frame_bytes(other), end, end, other) == following + _frame_bytes(other):
            raise BadClipError(
                f"holds frames of {_kind(like)}, and then of {_kind(other)} (joined, or damaged); part or convert it"
            )
        following = _next(file, following + 1, end, end, like)
    if following is not None:
        return following, following - at + padding
    return None, 0 if rest.startswith(TAGS) else end - at


def _next(file: int, at: int, last: int, end: int, like: int) -> int | None:
    """Return where the next frame begins, from `at` to before `last`: a header which, a frame further, a like one follows."""
    while at < last:
        window = os.pread(file, min(_WINDOW, end - at), at)
        found = window.find(b"\xff")
        while 0 <= found < last - at:
            header = int.from_bytes(window[found : found + 4])
            size = _frame_bytes(header) if not like or _alike(header, like) else 0
            if size and at + found + size <= end:
                behind = os.pread(file, 4, at + found + size)
                if at + found + size == end or behind.startswith(TAGS) or _alike(int.from_bytes(behind), header):
                    return at + found
            found = window.find(b"\xff", found + 1)
        at += max(1, len(window) - 3)
    return None


def _alike(header: int, other: int) -> bool:
    return (header ^ other) & _ALIKE == 0 and _is_mono(header) == _is_mono(other) and _frame_bytes(header) > 0


def _header(file: int, at: int) -> int:
    return int.from_bytes(os.pread(file, 4, at))


def _kind(header: int) -> str:
    rate = _RATES[header >> 19 & 3][header >> 10 & 3]
    return f"{rate} Hz, layer {4 - (header >> 17 & 3)}, {'mono' if _is_mono(header) else 'stereo'}"


def _announced(file: int, at: int, header: int) -> tuple[int | None, bool, int]:
    """Return the number of frames in a Xing or VBRI frame, whether libsndfile sees it, and its size; (None, False, 0) of sound.

    A checksum precedes the side information, or is forgotten by the program that wrote the number; mpg123 forgets it as well,
    and takes a frame for sound whose side information is not empty.
    """
    size = _frame_bytes(header)
    frame = os.pread(file, size, at)
    checksum = 0 if header & _UNPROTECTED else 2
    side = 4 + _side_bytes(header)
    for tag in {side, side + checksum}:
        if frame[tag : tag + 4] in (b"Xing", b"Info"):
            flags, announced = struct.unpack_from(">II", frame.ljust(tag + 12, b"\0"), tag + 4)
            heeded = tag == side and not any(frame[4 + 2 : tag])
            return announced if flags & _FRAMES else _NOT_ANNOUNCED, heeded, size
    if frame[36:40] == b"VBRI":
        return _NOT_ANNOUNCED, False, size  # nothing that libsndfile reads
    return None, False, 0


def _frame_bytes(header: int) -> int:
    """Return the size of the frame that begins with these four bytes, 0 if none does (or its bitrate is a free one)."""
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    kbits, rate = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or kbits in (0, 15) or rate == 3:
        return 0
    bits = 1000 * _KBITS[version == 3, layer][kbits]
    padding = header >> 9 & 1
    if layer == 1:
        return (12 * bits // _RATES[version][rate] + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits // _RATES[version][rate] + padding


def _side_bytes(header: int) -> int:
    """Return the bytes of side information between a layer III frame's header and its sound."""
    return (17 if _is_mono(header) else 32) if _is_version_1(header) else 9 if _is_mono(header) else 17


def _is_mono(header: int) -> bool:
    return header >> 6 & 3 == 3


def _is_version_1(header: int) -> bool:
    return header >> 19 & 3 == 3


def _id3(padding: int) -> bytes:
    """Return an empty tag: without one libsndfile knows MP3 by its name alone, and without padding not even so."""
    padding += 32
    size = bytes(padding >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\0\0" + size + bytes(padding)
