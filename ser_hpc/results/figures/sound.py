"""Draw a clip: its waveform as a figure, its spectrogram as a small PNG."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from ser_hpc.results.figures.shapes import WIDTH, Figure, Line, Shape

_COLUMNS, _BANDS, _WINDOW, _RANGE_DB, _LEVELS = 240, 64, 512, 70.0, 64
_HEIGHT = 48.0
# Ten points of matplotlib's viridis (Smith and van der Walt 2015), which is even for all kinds of colour vision.
_VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"


def waveform(samples: np.ndarray, title: str) -> Figure:
    """Draw the lowest and highest sample of each of the columns; `samples`: int16 (n,), scaled to the clip's own peak."""
    parts = np.array_split(samples.astype(np.float64), min(len(samples), _COLUMNS))
    peak = max(1.0, float(np.abs(samples.astype(np.float64)).max(initial=0.0)))
    middle, reach = _HEIGHT / 2, _HEIGHT / 2 - 1
    places = np.linspace(0.5, WIDTH - 0.5, len(parts)).round(1).tolist()
    high, low = ([round(middle - reach * float(of(part)) / peak, 1) for part in parts] for of in (np.max, np.min))
    strokes = tuple(point for x, top, bottom in zip(places, high, low, strict=True) for point in ((x, top), (x, bottom)))
    shapes: tuple[Shape, ...] = (Line(strokes, "one"),)
    return Figure(title, _HEIGHT, shapes)


def spectrogram(samples: np.ndarray) -> str:
    """Return a PNG as a data URL: 0 to 8 kHz from below, 70 dB below the loudest. `samples`: int16 (n,) at 16 kHz."""
    sound = np.pad(samples.astype(np.float64), (0, max(0, _WINDOW - len(samples))))
    starts = np.unique(np.linspace(0, len(sound) - _WINDOW, _COLUMNS).astype(int))
    frames = np.stack([sound[start : start + _WINDOW] for start in starts]) * np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)[:, 1:]) ** 2
    bands = power.reshape(len(starts), _BANDS, -1).mean(-1)
    level = 10 * np.log10(np.maximum(bands, 1e-9))
    share = np.clip((level - level.max()) / _RANGE_DB + 1, 0, 1)
    return "data:image/png;base64," + base64.b64encode(_png((share.T[::-1] * (_LEVELS - 1)).round().astype(np.uint8))).decode()


def _png(rows: np.ndarray) -> bytes:
    """Write a PNG of palette numbers (height, width)."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in _VIRIDIS.split()])
    places = np.linspace(0, len(anchors) - 1, _LEVELS)
    palette = (
        np.stack([np.interp(places, range(len(anchors)), anchors[:, i]) for i in range(3)], axis=1).round().astype(np.uint8)
    )
    head = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 8, 3, 0, 0, 0)
    lines = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each after the number of its filter, none
    parts = ((b"IHDR", head), (b"PLTE", palette.tobytes()), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
