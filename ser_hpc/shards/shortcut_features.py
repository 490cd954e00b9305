"""Measure what a clip gives away without being listened to: how long and loud it is, its first moments, its background.

    duration             seconds
    level                root mean square and peak, in dB of full scale
    first 200 ms         spectrum and level of the first 200 ms, which are seldom more than a breath
    noise floor          spectrum and level of the quietest tenth of the frames
    silence at edges     seconds before and behind the sound
    digital zeros        seconds of them at the beginning, at the end and between
    long-term spectrum   the mean spectrum, whatever the level: of the microphone and the room, but of the voice too

A spectrum is the energy in 20 bands, equally wide in Mel, of frames of 25 ms every 10 ms, in dB. Digital zeros (5 ms or more of
one value, as padding and cutting leave them) are no silence: frames with any are left out of noise floor, edges and spectrum.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from ser_hpc.shards import RATE

VERSION = 1  # of what is measured: raise it with any change of a number below
_BANDS = 20
_FRAME, _HOP, _FFT = RATE // 40, RATE // 100, 512
_FIRST = RATE // 5
_ZERO_RUN = RATE // 200
_QUIET_SHARE = 0.1
_SILENT_DB = 30.0  # below the loud frames: silence before and behind the sound
_FLOOR = 1e-10  # of full scale: -100 dB
_AT_ONCE = 1 << 13  # frames

_WIDTHS = {
    "duration": 1,
    "level": 2,
    "first 200 ms": _BANDS + 1,
    "noise floor": _BANDS + 1,
    "silence at edges": 2,
    "digital zeros": 3,
    "long-term spectrum": _BANDS,
}
_ENDS = np.cumsum([*_WIDTHS.values()]).tolist()
# The columns of each feature.
COLUMNS = MappingProxyType({name: slice(end - _WIDTHS[name], end) for name, end in zip(_WIDTHS, _ENDS, strict=True)})
WIDTH: int = _ENDS[-1]


def measure_clip(samples: np.ndarray) -> np.ndarray:
    """Measure one clip, int16 (num_samples,) at 16 kHz: float64 (WIDTH,), nan where there is nothing to measure it on."""
    sound, zeros = samples / np.float64(32768), find_digital_zeros(samples)
    bands = _band_energies(sound, np.flatnonzero(~_cut(zeros).any(1)))
    row = np.full(WIDTH, np.nan)
    row[COLUMNS["duration"]] = len(samples) / RATE
    row[COLUMNS["digital zeros"]] = _count_zeros(zeros) / RATE
    row[COLUMNS["first 200 ms"]] = _spectrum(_band_energies(sound[:_FIRST]))
    if not zeros.all():
        heard = sound[~zeros] ** 2
        row[COLUMNS["level"]] = _db(np.array([heard.mean(), heard.max()]))
    if len(bands):
        energy = bands.sum(1)
        quietest = np.argsort(energy, kind="stable")[: max(1, round(_QUIET_SHARE * len(energy)))]
        row[COLUMNS["noise floor"]] = _spectrum(bands[quietest])
        row[COLUMNS["silence at edges"]] = _edges(energy)
        row[COLUMNS["long-term spectrum"]] = _db(bands.mean(0)) - _db(energy.mean())
    return row


def find_digital_zeros(samples: np.ndarray) -> np.ndarray:
    """Return a mask, bool (num_samples,), of the samples in a stretch of 5 ms or more of one and the same value."""
    starts = np.flatnonzero(np.diff(samples, prepend=samples[:1] ^ 1))
    lengths = np.diff(starts, append=len(samples))
    return np.repeat(lengths >= _ZERO_RUN, lengths)


def _count_zeros(zeros: np.ndarray) -> np.ndarray:
    """Count them at the beginning, at the end and between, (3,); a clip of nothing else has them at its beginning."""
    heard = np.flatnonzero(~zeros)
    if not len(heard):
        return np.array([len(zeros), 0, 0])
    begin, end = heard[0], len(zeros) - 1 - heard[-1]
    return np.array([begin, end, zeros.sum() - begin - end])


def _cut(values: np.ndarray) -> np.ndarray:
    """Cut into frames, (num_frames, 400); what is shorter than a frame is one."""
    padded = np.pad(values, (0, max(0, _FRAME - len(values))))
    frames: np.ndarray = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    return frames


def _band_energies(sound: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Compute the mean square of frames in each band, (num_frames, 20); `rows`: of these frames alone."""
    frames = _cut(sound)
    rows = np.arange(len(frames)) if rows is None else rows
    found = np.empty((len(rows), _BANDS))
    for start in range(0, len(rows), _AT_ONCE):
        some = frames[rows[start : start + _AT_ONCE]]
        power = np.abs(np.fft.rfft(some * _WINDOW, _FFT)) ** 2
        found[start : start + _AT_ONCE] = np.add.reduceat(power, _EDGES, axis=1)[:, :-1]
    return found


def _spectrum(bands: np.ndarray) -> np.ndarray:
    """Return the shape of the mean spectrum, and its level, in dB: (21,)."""
    mean = bands.mean(0)
    level = _db(mean.sum())
    return np.append(_db(mean) - level, level)


def _edges(energy: np.ndarray) -> np.ndarray:
    """Return the seconds before the first and behind the last frame that is not silent, (2,)."""
    loud = np.flatnonzero(_db(energy) > _db(np.quantile(energy, 0.95)) - _SILENT_DB)
    return np.array([loud[0], len(energy) - 1 - loud[-1]]) * _HOP / RATE


def _db(square: np.ndarray) -> np.ndarray:
    """Convert mean squares to decibels."""
    found: np.ndarray = 10 * np.log10(np.maximum(square, _FLOOR))
    return found


def _band_edges() -> np.ndarray:
    """Return the first bin of each band, and of what lies above the last: 60 to 7,600 Hz, equally wide in Mel."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (60.0, 7600.0))
    hertz = 700 * (10 ** (np.linspace(low, high, _BANDS + 1) / 2595) - 1)
    bins = np.ceil(hertz * _FFT / RATE).astype(np.int64)
    return np.maximum.accumulate(np.maximum(bins, bins[0] + np.arange(len(bins))))  # no band is empty


_WINDOW = np.hanning(_FRAME)
_WINDOW /= np.sqrt(_FFT / 2 * (_WINDOW**2).sum())  # so that bands add up to the mean square
_EDGES = _band_edges()
