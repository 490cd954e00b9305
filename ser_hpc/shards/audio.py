"""Decode any recording to 16 kHz mono int16 (or raise `BadClipError` with the reason), and encode and decode FLAC.

libsndfile decodes, soxr resamples, block by block, so that memory holds little more than the result. `read_header` looks at
headers only (cheap, for refusing a corpus before anything is written); `decode` reads the samples.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from ser_hpc.shards import RATE
from ser_hpc.shards.containers.contents import BadClipError as BadClipError
from ser_hpc.shards.downmix import AS_IT_IS, Downmix, LevelMeter
from ser_hpc.shards.recording import Recording, open_recording
from ser_hpc.shards.source import SourceFile

_FRAME = RATE // 100  # 10 ms
_BLOCK = 1 << 20
_SAMPLES_PER_BYTE = 8192  # more than the densest FLAC, digital silence, has
_DIGITAL_SILENCE_DB = -140.0
# Annotated ends are often rounded to hundredths: this much past the recording is cut off, more is out of range.
_ROUNDING_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """What the header says of a clip. `num_samples`: at 16 kHz; `doubtful`: what is wrong with the header, "" if nothing."""

    num_samples: int
    doubtful: str


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """A decoded clip. `samples`: int16 (num_samples,) at 16 kHz; `clipped`: share of the source's samples at full scale.

    Messages, "" where all is well: `doubtful` (see AudioHeader), `out_of_range` and `cancelled` (see downmix.Downmix).
    """

    samples: np.ndarray
    clipped: float
    doubtful: str = ""
    out_of_range: str = ""
    cancelled: str = ""


def read_header(file: Path | SourceFile, start_s: float | None = None, end_s: float | None = None) -> AudioHeader:
    """Read a clip's header. Raises BadClipError for everything that can be known without decoding."""
    with open_recording(file) as recording:
        first, last = _frames(recording, start_s, end_s)
        return AudioHeader(_num_samples(last - first, recording.rate), recording.doubt)


def decode(file: Path | SourceFile, start_s: float | None = None, end_s: float | None = None) -> DecodedClip:
    """Decode a clip to 16 kHz mono int16: channels averaged, resampled (soxr HQ), rounded, clipped. Raises BadClipError.

    Where the average would spoil the sound, channels are mixed in another way (`downmix.Downmix`), which the result says.
    """
    mix = AS_IT_IS
    samples, volume, doubt = _mixed(file, start_s, end_s, mix)
    while (better := mix.better(volume)) != mix:
        mix = better
        samples, volume, doubt = _mixed(file, start_s, end_s, mix)
    return DecodedClip(samples, volume.clipped, doubt, mix.out_of_range, mix.cancelled)


def stream(file: Path | SourceFile, start_s: float | None = None, end_s: float | None = None) -> Iterator[np.ndarray]:
    """Yield the samples of `decode`, int16 block by block, in memory that does not grow with the clip. Raises BadClipError.

    What may have to be mixed in another way, recordings of several channels or of floats, is read twice for that.
    """
    mix = AS_IT_IS
    while (better := mix.better(_measured(file, start_s, end_s, mix))) != mix:
        mix = better
    with open_recording(file) as recording:
        first, last = _frames(recording, start_s, end_s)
        yield from _blocks(recording, first, last, mix, LevelMeter())


def _measured(file: Path | SourceFile, start_s: float | None, end_s: float | None, mix: Downmix) -> LevelMeter:
    """Measure a clip's level under a mix, as far as another mix could come of it."""
    volume = LevelMeter()
    with open_recording(file) as recording:
        first, last = _frames(recording, start_s, end_s)
        if (recording.sound.channels, recording.sound.subtype) != (1, "PCM_16"):
            for block in recording.blocks(first, last):
                mix.mono(block, volume)
    return volume


def _mixed(
    file: Path | SourceFile, start_s: float | None, end_s: float | None, mix: Downmix
) -> tuple[np.ndarray, LevelMeter, str]:
    with open_recording(file) as recording:
        first, last = _frames(recording, start_s, end_s)
        samples = np.empty(_num_samples(last - first, recording.rate), np.int16)
        volume, done = LevelMeter(), 0
        for mono in _blocks(recording, first, last, mix, volume):
            samples[done : done + len(mono)] = mono
            done += len(mono)
    assert done == len(samples), "as soxr rounds"
    return samples, volume, recording.doubt


def _blocks(recording: Recording, first: int, last: int, mix: Downmix, volume: LevelMeter) -> Iterator[np.ndarray]:
    """Yield frames `first` to `last` as int16 (samples,) at 16 kHz; `volume` measures them."""
    resampler = soxr.ResampleStream(recording.rate, RATE, 1, quality="HQ") if recording.rate != RATE else None
    left = last - first
    for block in recording.blocks(first, last):
        left -= len(block)
        mono = mix.mono(block, volume)
        if resampler is not None:
            mono = resampler.resample_chunk(mono.astype(np.float32, copy=False), last=not left)
        if mono.dtype != np.int16:
            np.rint(mono, out=mono).clip(-32768, 32767, out=mono)
        yield mono.astype(np.int16, copy=False)


def level_db(samples: np.ndarray) -> float:
    """Return the level in dBFS that a clip reaches or exceeds for 100 ms in all, wherever those are; rounded to 0.1.

    The swing (half of peak to peak) of the tenth loudest of its frames of 10 ms: a click does not make silence loud, an offset
    is no sound, and one word in a long pause is enough. Digital silence is -140.
    """
    size = min(_FRAME, len(samples))
    whole = samples[: len(samples) // size * size]
    starts = np.arange(0, len(whole), size)  # reduceat: in half the time of a maximum over short rows
    swings = np.maximum.reduceat(whole, starts).astype(np.int32) - np.minimum.reduceat(whole, starts)
    rank = min(10, len(swings))
    swing = int(np.partition(swings, -rank)[-rank])
    return round(20 * math.log10(swing / 65536), 1) if swing else _DIGITAL_SILENCE_DB


def encode_flac(samples: np.ndarray) -> bytes:
    """Encode int16 (num_samples,) at 16 kHz as FLAC, level 5 (libsndfile's default); the same bytes for the same samples."""
    buffer = io.BytesIO()
    write_flac(samples, buffer)
    return buffer.getvalue()


def write_flac(samples: np.ndarray, file: BinaryIO | int) -> None:
    """Encode as `encode_flac` does, into an open, empty file or its descriptor."""
    soundfile.write(file, samples, RATE, format="FLAC", subtype="PCM_16", closefd=False)


def decode_flac(payload: bytes) -> np.ndarray:
    """Decode a shard's payload to int16 (num_samples,). Raises BadClipError if it is not whole 16 kHz mono FLAC."""
    with _flac(payload) as sound:
        return np.asarray(sound.read(dtype="int16"))


def measure_flac(payload: bytes) -> tuple[int, str]:
    """Return the number of samples of a shard's payload and their `samples_hash`, in bounded memory. Raises BadClipError."""
    length, digest = 0, hashlib.md5(usedforsecurity=False)
    with _flac(payload) as sound:
        while len(samples := sound.read(_BLOCK, dtype="int16")):
            length += len(samples)
            digest.update(samples.astype("<i2", copy=False).tobytes())
    return length, digest.hexdigest()


def samples_hash(samples: np.ndarray) -> str:
    """Return the MD5 of int16 samples, 32 hex digits: equal for identical sound, whatever its file; FLAC records the same."""
    return hashlib.md5(np.ascontiguousarray(samples, "<i2").data, usedforsecurity=False).hexdigest()


def flac_samples_hash(payload: bytes) -> str:
    """Return the `samples_hash` that the encoder wrote into a FLAC file (`metaflac --show-md5sum`), without decoding it."""
    return payload[26:42].hex()


@contextmanager
def _flac(payload: bytes) -> Iterator[soundfile.SoundFile]:
    try:
        with soundfile.SoundFile(io.BytesIO(payload)) as sound:
            if (sound.format, sound.samplerate, sound.channels) != ("FLAC", RATE, 1):
                raise BadClipError(f"is not FLAC of {RATE} Hz, mono")
            if sound.frames > len(payload) * _SAMPLES_PER_BYTE:
                raise BadClipError(f"announces {sound.frames} samples, which so few bytes cannot hold")
            yield sound
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise BadClipError(f"does not decode as FLAC ({error})") from error


def _frames(recording: Recording, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """Return first and last (exclusive) source frame of a clip, checked against the recording."""
    rate, total = recording.rate, recording.frames
    first = round(start_s * rate) if start_s is not None else 0
    last = round(end_s * rate) if end_s is not None else total
    if not 0 <= first < last <= total + _ROUNDING_SECONDS * rate:
        raise BadClipError(f"segment {start_s} to {end_s} s is outside the recording of {total / rate:.2f} s, or empty")
    last = min(last, total)
    if not _num_samples(last - first, rate):
        raise BadClipError(f"holds no sound ({last - first} frames at {rate} Hz)")
    return first, last


def _num_samples(frames: int, rate: int) -> int:
    """Return the length at 16 kHz, as soxr rounds."""
    return math.floor(frames * RATE / rate + 0.5)
