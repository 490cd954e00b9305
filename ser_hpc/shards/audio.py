"""Any recording -> 16 kHz mono int16, or a `BadClipError` that says in words why not.

libsndfile decodes, soxr resamples. What libsndfile lets pass in silence is refused here: a WAV that ends before its header
says so, a text file or a git-lfs pointer under an audio name, NaNs in float files. `probe` looks at headers only (cheap, for
refusing a corpus before anything is written); `decode` reads the samples.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000
_FULL_SCALE = 32767
_FRAME = RATE // 100  # 10 ms
_HEAD = 4096  # bytes of a file that are looked at before libsndfile is
_BLOCK = 1 << 20
_SAMPLES_PER_BYTE = 8192  # more than the densest FLAC, digital silence, has
_DIGITAL_SILENCE_DB = -140.0
# Annotated ends are often rounded to hundredths: this much past the recording is cut off, more is out of range.
_ROUNDING_SECONDS = 0.01
# Sizes that programs write when they cannot go back to the header (pipes): the sound then runs to the end of the file.
_STREAMING = (0, 0x7FFFF000, 0xFFFFFFFF)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class BadClipError(Exception):
    """A clip that cannot be packed. The message is the reason, without the path."""


@dataclass(frozen=True, slots=True)
class Clip:
    """`samples` int16 (num_samples,) at 16 kHz; `clipped`: share of the source's samples at full scale or beyond."""

    samples: np.ndarray
    clipped: float


def probe(path: Path, start_s: float | None = None, end_s: float | None = None) -> int:
    """Samples that `decode` will give, from the header alone. Raises BadClipError for everything that a header can tell."""
    with _opened(path) as sound:
        first, last = _frames(sound, start_s, end_s)
        return _num_samples(last - first, sound.samplerate)


def decode(path: Path, start_s: float | None = None, end_s: float | None = None) -> Clip:
    """The clip as 16 kHz mono int16: channels averaged, resampled (soxr HQ), rounded, clipped. Raises BadClipError."""
    with _opened(path) as sound:
        first, last = _frames(sound, start_s, end_s)
        sound.seek(first)
        is_int16, rate = sound.subtype == "PCM_16", sound.samplerate  # read as such in half the time, and just the same
        frames = sound.read(last - first, dtype="int16" if is_int16 else "float32", always_2d=True)
    if len(frames) != last - first:
        raise BadClipError(f"is truncated: {last - first} frames announced, {len(frames)} decoded")
    if not is_int16:
        frames *= np.float32(32768)
        if not np.isfinite(frames).all():
            raise BadClipError("holds NaN or infinite samples")
    clipped = np.count_nonzero(frames >= _FULL_SCALE) + np.count_nonzero(frames <= -_FULL_SCALE)
    mono = frames.mean(axis=1, dtype=np.float32) if frames.shape[1] > 1 else frames[:, 0]
    if rate != RATE:
        mono = soxr.resample(mono.astype(np.float32, copy=False), rate, RATE, quality="HQ")
    if mono.dtype != np.int16:
        mono = np.clip(np.rint(mono), -32768, 32767).astype(np.int16)
    return Clip(mono, float(clipped / frames.size))


def level_db(samples: np.ndarray) -> float:
    """The level in dBFS that a clip reaches or exceeds for 100 ms in all, wherever those are; rounded to 0.1.

    The swing (half of peak to peak) of the tenth loudest of its frames of 10 ms: a click does not make silence loud, an offset
    is no sound, and one word in a long pause is enough. Digital silence is -140.
    """
    size = min(_FRAME, len(samples))
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    swings = frames.max(axis=1).astype(np.int32) - frames.min(axis=1)
    rank = min(10, len(swings))
    swing = int(np.partition(swings, -rank)[-rank])
    return round(20 * math.log10(swing / 65536), 1) if swing else _DIGITAL_SILENCE_DB


def encode_flac(samples: np.ndarray) -> bytes:
    """int16 (num_samples,) at 16 kHz as FLAC, level 5 (libsndfile's default); the same bytes for the same samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(payload: bytes) -> np.ndarray:
    """int16 (num_samples,) of a shard's payload. Raises BadClipError if it is not whole 16 kHz mono FLAC."""
    with _flac(payload) as sound:
        return np.asarray(sound.read(dtype="int16"))


def measure_flac(payload: bytes) -> tuple[int, str]:
    """Number of samples of a shard's payload, and their `sound_hash`; in bounded memory. Raises as `decode_flac`."""
    length, digest = 0, hashlib.md5(usedforsecurity=False)
    with _flac(payload) as sound:
        while len(samples := sound.read(_BLOCK, dtype="int16")):
            length += len(samples)
            digest.update(samples.astype("<i2", copy=False).tobytes())
    return length, digest.hexdigest()


def sound_hash(samples: np.ndarray) -> str:
    """MD5 of int16 samples, 32 hex digits: equal for identical sound, whatever file it came from; what FLAC itself records."""
    return hashlib.md5(samples.astype("<i2", copy=False).tobytes(), usedforsecurity=False).hexdigest()


def flac_sound_hash(payload: bytes) -> str:
    """The `sound_hash` that the encoder wrote into a FLAC file (`metaflac --show-md5sum`), without decoding it."""
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


def _frames(sound: soundfile.SoundFile, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """First and last (exclusive) source frame of a clip, checked against the recording."""
    rate, total = sound.samplerate, sound.frames
    if not 0 <= total < 2**62:
        raise BadClipError("has no length in its header (written through a pipe?); convert it again to a file")
    if total == 0:
        raise BadClipError("holds no sound (0 frames)")
    first = round(start_s * rate) if start_s is not None else 0
    last = round(end_s * rate) if end_s is not None else total
    if not 0 <= first < last <= total + _ROUNDING_SECONDS * rate:
        raise BadClipError(f"segment {start_s} to {end_s} s is outside the recording of {total / rate:.2f} s, or empty")
    last = min(last, total)
    if not _num_samples(last - first, rate):
        raise BadClipError(f"holds no sound ({last - first} frames at {rate} Hz)")
    return first, last


def _num_samples(frames: int, rate: int) -> int:
    """At 16 kHz, as soxr rounds."""
    return math.floor(frames * RATE / rate + 0.5)


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    head = b""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.pread(file, _HEAD, 0)
            # By its descriptor: a Python file would stand between libsndfile and every read.
            with soundfile.SoundFile(_mended_wav(file, head) or file, "r", closefd=False) as sound:
                yield sound
        finally:
            os.close(file)
    except FileNotFoundError:
        raise BadClipError("is a link to a file that is not there" if path.is_symlink() else "does not exist") from None
    except OSError as error:
        raise BadClipError(f"cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise BadClipError("announces more sound than memory holds") from None
    except (RuntimeError, struct.error) as error:  # libsndfile's, and our own look at a header that ends too early
        raise BadClipError(_why_undecodable(head, error)) from error


def _why_undecodable(head: bytes, error: Exception) -> str:
    """Empty, git-lfs pointer, text: files that only have the name of a recording."""
    head = head[:64]
    if not head:
        return "is empty (0 bytes)"
    if head.startswith(_LFS_POINTER):
        return "is a git-lfs pointer, not the recording; run `git lfs pull` in the corpus"
    text = head.decode("utf-8", errors="ignore")
    if len(text.encode()) > 0.9 * len(head) and all(character.isprintable() or character.isspace() for character in text):
        return f"is a text file, not audio (it begins {text[:30]!r})"
    return f"cannot be decoded as audio ({getattr(error, 'error_string', error)}); convert it to WAV or FLAC"


def _mended_wav(file: int, head: bytes) -> io.BytesIO | None:
    """A WAV streamed with size 0 as a copy that states its true size; None for others. Raises BadClipError if truncated."""
    size = os.fstat(file).st_size
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:12] != b"WAVE":
        return None
    riff_size, data64, at = struct.unpack_from("<I", head, 4)[0], None, 12
    while at + 8 <= size:
        chunk = head[at : at + 24] if at + 24 <= len(head) else os.pread(file, 24, at)
        name, length = struct.unpack_from("<4sI", chunk)
        if name == b"ds64":
            data64 = struct.unpack_from("<16xQ", chunk)[0]
        if name == b"data":
            break
        at += 8 + length + length % 2
    else:
        raise BadClipError("is truncated: it ends before its sound begins")
    present = size - at - 8
    if data64 is not None and length == 0xFFFFFFFF:
        length = data64
    if length == 0 and present and riff_size in _STREAMING:
        with open(file, "rb", closefd=False) as stream:
            whole = bytearray(stream.read())
        whole[at + 4 : at + 8] = struct.pack("<I", present)
        return io.BytesIO(whole)
    if length > present and length not in _STREAMING:
        raise BadClipError(f"is truncated: its header announces {length} bytes of sound, the file holds {present}")
    return None
