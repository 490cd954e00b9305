"""Sound files as programs really write them, whole and odd, made from their bytes: no encoder is needed but libsndfile."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile

RATE = 16_000


def speech(seconds: float = 2.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Noise that rises and falls as syllables do, float (num_samples,), at most 0.5."""
    rng = np.random.default_rng(seed)
    size = round(seconds * rate)
    knots = size // (rate // 8) + 2
    envelope = np.interp(np.arange(size), np.arange(knots) * (rate // 8), rng.uniform(0.05, 1, knots))
    return 0.5 * envelope * np.tanh(rng.standard_normal(size))


def as_int16(samples: np.ndarray) -> np.ndarray:
    return np.rint(samples * 32767).astype(np.int16)


def written(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None, **options: object) -> bytes:
    """As libsndfile writes it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype, **options)
    return buffer.getvalue()


def wav(samples: np.ndarray, *, before: bytes = b"", after: bytes = b"", rate: int = RATE) -> bytes:
    """16-bit WAV, its header as plain as can be; chunks `before` and `after` its sound."""
    frames = samples.astype("<i2").tobytes()
    channels = samples.shape[1] if samples.ndim > 1 else 1
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    content = b"WAVE" + form + before + b"data" + struct.pack("<I", len(frames)) + frames + after
    return b"RIFF" + struct.pack("<I", len(content)) + content


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def with_sizes(sound: bytes, riff: int | None = None, data: int | None = None, more: int = 0) -> bytes:
    """A WAV whose header tells these sizes of the RIFF and of the data, or of both so many bytes `more`."""
    at = sound.index(b"data") + 4
    told = struct.unpack_from("<I", sound, 4)[0] + more, struct.unpack_from("<I", sound, at)[0] + more
    sizes = [number if given is None else given for given, number in zip((riff, data), told, strict=True)]
    return sound[:4] + struct.pack("<I", sizes[0]) + sound[8:at] + struct.pack("<I", sizes[1]) + sound[at + 4 :]


def mp3(samples: np.ndarray, rate: int = RATE, *, xing: bool = False, quality: float = 0.5, mode: str = "VARIABLE") -> bytes:
    """MP3 as LAME makes it, without the frame that tells its length unless `xing`."""
    sound = written(samples, rate, "MP3", bitrate_mode=mode, compression_level=quality)
    return sound if xing else sound[mp3_frame_bytes(sound) :]


def mp3_frame_bytes(sound: bytes) -> int:
    """Of the first frame of MPEG 2, layer III, 16 kHz (or of MPEG 1)."""
    kbits = sound[2] >> 4
    if sound[1] & 8:
        rate = (44_100, 48_000, 32_000)[sound[2] >> 2 & 3]
        table, factor = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320), 144
    else:
        rate = (22_050, 24_000, 16_000)[sound[2] >> 2 & 3]
        table, factor = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160), 72
    return factor * table[kbits] * 1000 // rate + (sound[2] >> 1 & 1)


def mp3_frames(sound: bytes) -> int:
    count, at = 0, 0
    while at < len(sound):
        count, at = count + 1, at + mp3_frame_bytes(sound[at : at + 4])
    return count


def riff_mp3(sound: bytes, rate: int = RATE, channels: int = 1) -> bytes:
    """MP3 in a WAV, as Windows' recorders write it."""
    form = struct.pack("<HHIIHHHHIHHH", 0x55, channels, rate, 4000, 1, 0, 12, 1, 2, 576, 1, 1393)
    content = b"WAVE" + chunk(b"fmt ", form) + chunk(b"fact", struct.pack("<I", 0)) + chunk(b"data", sound)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def piped_flac(sound: bytes, total: int = 0) -> bytes:
    """FLAC that tells this number of samples: 0, as encoders write it into a pipe."""
    packed = int.from_bytes(sound[18:26]) & ~((1 << 36) - 1) | total
    return sound[:18] + packed.to_bytes(8) + sound[26:]
