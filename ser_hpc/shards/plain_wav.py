"""Read the plainest WAV files, which most corpora are of, without libsndfile: 44 bytes of header, then 16-bit samples.

Every field of such a header is held against every other and against the file; in any other case libsndfile is asked.
"""

from __future__ import annotations

import struct

import numpy as np

from ser_hpc.shards.containers.contents import RATES
from ser_hpc.shards.source import SourceFile

_HEADER = struct.Struct("<4sI8sIHHIIHH4sI")
_PCM, _BITS = 1, 16
_MOST_CHANNELS = 1024  # libsndfile's


class PlainWav:
    """An open one, with those of SoundFile's attributes and methods that `recording.Recording` needs."""

    subtype, can_seek = "PCM_16", True

    def __init__(self, file: SourceFile, frames: int, samplerate: int, channels: int) -> None:
        self.frames, self.samplerate, self.channels = frames, samplerate, channels
        self._file, self._at, self._width = file, 0, 2 * channels

    @classmethod
    def of(cls, file: SourceFile, head: bytes) -> PlainWav | None:
        """Open a file that begins with these bytes; None if it is another one."""
        if len(head) < _HEADER.size:
            return None
        riff, size, wave, *fields, data, length = _HEADER.unpack_from(head)
        form, tag, channels, rate, byte_rate, align, bits = fields
        if (riff, wave, data, form, tag, bits) != (b"RIFF", b"WAVEfmt ", b"data", 16, _PCM, _BITS):
            return None
        if (align, byte_rate, size, length) != (2 * channels, rate * align, file.size - 8, file.size - _HEADER.size):
            return None
        if not length or not 1 <= channels <= _MOST_CHANNELS or length % align or not RATES[0] <= rate <= RATES[1]:
            return None
        return cls(file, length // align, rate, channels)

    def seek(self, frame: int) -> None:
        """Go to a frame."""
        self._at = frame

    def read(self, frames: int, dtype: str = "int16", always_2d: bool = True) -> np.ndarray:
        """Return the next frames, int16 (frames, channels); fewer where the file ends."""
        assert dtype == "int16" and always_2d
        content = self._file.read(frames * self._width, _HEADER.size + self._at * self._width)
        block = np.frombuffer(content, "<i2", len(content) // self._width * self.channels).reshape(-1, self.channels)
        self._at += len(block)
        return block
