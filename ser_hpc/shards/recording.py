"""Open any sound file: libsndfile decodes it, but its header is checked against the file first.

What libsndfile lets pass in silence is refused: a file that ends before its header says so, a text file or a git-lfs pointer
under an audio name. What it refuses or cuts short without need is read: headers of programs that did not come back to them
(containers/). What is doubtful and read nevertheless is in `Recording.doubt`.
"""

from __future__ import annotations

import io
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import soundfile

from ser_hpc.shards.containers import flac, mpeg, ogg, plain, wav
from ser_hpc.shards.containers.contents import RATES, AudioContents, BadClipError, behind_tag
from ser_hpc.shards.plain_wav import PlainWav
from ser_hpc.shards.source import SourceFile, open_source

_HEAD = 4096  # bytes of a file that are looked at before libsndfile is
_BLOCK = 1 << 16  # samples, of all channels, at once: what stays in a core's cache
_SAMPLES_PER_BYTE = 8192  # more than the densest FLAC, digital silence, has
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, slots=True)
class Recording:
    """An open recording of `frames` at `rate` Hz. `doubt`: what is wrong with its header, "" if nothing.

    `last_seek`: the last frame to which to seek; from there on it is read.
    """

    sound: _Forward | PlainWav
    frames: int
    doubt: str
    last_seek: int

    @property
    def rate(self) -> int:
        """Sampling rate in Hz."""
        return int(self.sound.samplerate)

    def blocks(self, first: int, last: int) -> Iterator[np.ndarray]:
        """Yield frames `first` to `last` as (frames, channels): int16 of 16-bit PCM files, else float32 of full scale 1.

        Raises BadClipError where there are fewer.
        """
        dtype = "int16" if self.sound.subtype == "PCM_16" else "float32"  # read as such in half the time, and just the same
        size, left = max(1, _BLOCK // self.sound.channels), last - first
        if self.sound.can_seek and (place := min(first, self.last_seek)):
            self.sound.seek(place)
            first -= place
        while first and (passed := len(self.sound.read(min(size, first), dtype=dtype, always_2d=True))):
            first -= passed
        while left and len(block := self.sound.read(min(size, left), dtype=dtype, always_2d=True)):
            yield block
            left -= len(block)
        if left:
            raise BadClipError(f"is truncated: {last} frames announced, {last - left} decoded")


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file read from front to back, without a seek after each block, which some codecs cannot do."""

    @property
    def can_seek(self) -> bool:
        return bool(super().seekable())

    def seekable(self) -> bool:
        return False


class _Part(io.RawIOBase):
    """Some bytes, and then parts of an open file, as one file; nothing is copied."""

    def __init__(self, file: int, contents: AudioContents) -> None:
        self._file, self._head, self._at = file, contents.head, 0
        starts, ends = zip(*contents.gaps, strict=True) if contents.gaps else ((), ())
        parts = list(zip((contents.start, *ends), (*starts, contents.end), strict=True))
        lengths = (end - start for start, end in parts)
        self._begins = list(accumulate(lengths, initial=len(self._head)))  # of the parts, here; and the end of the last
        self._shifts = [start - begin for (start, _), begin in zip(parts, self._begins, strict=False)]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._begins[-1])[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        end = min(self._at + len(buffer), self._begins[-1])
        content = self._head[self._at : end]
        while (at := self._at + len(content)) < end:
            part = bisect_right(self._begins, at) - 1
            more = os.pread(self._file, min(end, self._begins[part + 1]) - at, at + self._shifts[part])
            if not more:
                break
            content += more
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


@contextmanager
def open_recording(file: Path | SourceFile) -> Iterator[Recording]:
    """Open a recording by its path, or in a file that is open. Raises BadClipError for all that the file's structure shows,
    here and while it is read."""
    if isinstance(file, Path):
        with open_source(file) as source, open_recording(source) as recording:
            yield recording
        return
    head = b""
    try:
        head = bytes(file.read(_HEAD, 0))
        if plain_wav := PlainWav.of(file, head):
            yield Recording(plain_wav, plain_wav.frames, "", plain_wav.frames)
            return
        contents = _contents(SourceFile(file.descriptor, file.version))  # the cache keeps it: without its content
        os.lseek(file.descriptor, 0, os.SEEK_SET)  # it may have been read before
        # By its descriptor: a Python file would stand between libsndfile and every read.
        part = _Part(file.descriptor, contents) if contents and contents.head else file.descriptor
        with _Forward(part, "r", closefd=False) as sound:
            if contents is None:
                reason = "behind a player's tag" if behind_tag(head, 0) else "which cannot be held against its length"
                raise BadClipError(f"is {sound.format_info}, {reason}; convert it to WAV or FLAC")
            yield _recording(sound, contents, file.size)
    except MemoryError:
        raise BadClipError("announces more sound than memory holds") from None
    except (RuntimeError, struct.error) as error:  # libsndfile's, and our own look at a header that ends too early
        raise BadClipError(_why_undecodable(head, error)) from error


@lru_cache(maxsize=64)
def _contents(file: SourceFile) -> AudioContents | None:
    """Find where the sound lies; None for a file of no format known here.

    Cached: of a long recording with a thousand clips, pages and frames are walked over once.
    """
    head = os.pread(file.descriptor, _HEAD, 0)
    for look in (wav.contents, flac.contents, ogg.contents, plain.contents):
        if (found := look(file.descriptor, head, file.size)) is not None:
            return found
    return mpeg.contents(file.descriptor, 0, file.size)


def _recording(sound: _Forward, contents: AudioContents, size: int) -> Recording:
    frames = sound.frames if contents.frames is None else contents.frames
    if not 0 <= frames < 2**62:
        raise BadClipError("has no length in its header (written through a pipe?); convert it again to a file")
    if frames == 0:
        raise BadClipError("holds no sound (0 frames)")
    if frames > (size + len(contents.head)) * _SAMPLES_PER_BYTE:
        raise BadClipError(f"announces {frames} frames, which so few bytes cannot hold")
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise BadClipError(f"has a damaged header: it says {sound.samplerate} Hz")
    last_seek, announced = contents.sought or (frames, frames)
    return Recording(sound, frames, contents.doubt, last_seek if announced == frames else 0)


def _why_undecodable(head: bytes, error: Exception) -> str:
    """Return the reason: empty, a git-lfs pointer, text (files with only the name of a recording), or libsndfile's error."""
    head = head[:64]
    if not head:
        return "is empty (0 bytes)"
    if head.startswith(_LFS_POINTER):
        return "is a git-lfs pointer, not the recording; run `git lfs pull` in the corpus"
    text = head.decode("utf-8", errors="ignore")
    if len(text.encode()) > 0.9 * len(head) and all(character.isprintable() or character.isspace() for character in text):
        return f"is a text file, not audio (it begins {text[:30]!r})"
    return f"cannot be decoded as audio ({getattr(error, 'error_string', error)}); convert it to WAV or FLAC"
