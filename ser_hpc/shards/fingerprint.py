"""Make a clip's acoustic fingerprint, which a change of gain, a cut, another rate or codec hardly alters.

Haitsma and Kalker, A Highly Robust Audio Fingerprinting System (ISMIR 2002): 17 bands between 300 and 3400 Hz give 16 bits
every 8 ms, each whether the difference of two neighbouring bands has grown within a tenth of a second. What differs from the
paper, for clips of a second and less: windows of 32 ms, of which twelve are summed; the fourth root of the power, in which weak
bands count too; a difference over 96 ms in place of one frame; and words of silence, of which nothing can be told, are marked.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ser_hpc.shards import RATE

LAYOUT = 1  # a change of anything here
BITS = 16  # of a word
HOP = 128  # samples from a word to the next
SILENCE = 0  # in place of a word
_WINDOW = 512
_SUMMED = 12  # windows
_LAG = 12  # hops between what is compared
_BANDS_HZ = (300.0, 3400.0)
_QUIET = 1e-3  # of the loudest stretch's power: 30 dB below it
_FLOOR_LSB = 2.0  # root mean square, in steps of 16 bits: below, rounding makes the bits
_AT_ONCE = 512  # windows: a megabyte
NO_WORDS = np.zeros(0, dtype=np.uint16)
SHORTEST = _WINDOW + HOP * (_SUMMED - 1 + _LAG)  # samples of a clip that has one word


def fingerprint(samples: np.ndarray) -> np.ndarray:
    """Return a clip's fingerprint, uint16 (num_words,), a word every HOP samples; SILENCE where it is too quiet to tell.

    `samples`: int16 (num_samples,) at 16 kHz. A clip of less than SHORTEST samples has none.
    """
    num_words = max(0, 1 + (len(samples) - SHORTEST) // HOP)
    if not num_words:
        return NO_WORDS
    sums = np.cumsum(_band_powers(samples), axis=0, dtype=np.float64)
    power = sums[_SUMMED - 1 :]
    power[1:] -= sums[:-_SUMMED].copy()
    np.maximum(power, 0, out=power)  # where rounding left less than nothing
    loudness = power.sum(axis=1)
    root = np.sqrt(np.sqrt(power.astype(np.float32)))
    slope = root[:, 1:] - root[:, :-1]
    words = np.packbits(slope[_LAG:] > slope[:-_LAG], axis=1, bitorder="little").view("<u2")[:, 0].astype(np.uint16)
    words[words == SILENCE] = 1
    audible = loudness >= max(_QUIET * float(loudness.max()), _floor())
    words[~(audible[_LAG:] & audible[:-_LAG])] = SILENCE
    return words


def words_to_seconds(words: float) -> float:
    """Return the seconds from a word to the one that is so many further on."""
    return words * HOP / RATE


def _band_powers(samples: np.ndarray) -> np.ndarray:
    """Return the power of each window in each band, float32 (num_windows, BITS + 1)."""
    from scipy.fft import rfft  # not for every command that knows fingerprints; numpy's takes five times as long in float32

    window, first, bands = _filters()
    windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::HOP]
    powers = np.empty((len(windows), bands.shape[1]), dtype=np.float32)
    for at in range(0, len(windows), _AT_ONCE):
        spectrum = rfft(windows[at : at + _AT_ONCE] * window, overwrite_x=True)[:, first : first + len(bands)]
        powers[at : at + _AT_ONCE] = (np.square(spectrum.real) + np.square(spectrum.imag)) @ bands
    return powers


@cache
def _filters() -> tuple[np.ndarray, int, np.ndarray]:
    """Return the window (Hann), the first bin that any band has, and the share of each bin from there in each band."""
    edges = np.geomspace(*_BANDS_HZ, BITS + 2)
    step = RATE / _WINDOW
    low = np.arange(_WINDOW // 2 + 1)[:, None] * step - step / 2
    shares = np.clip((np.minimum(edges[1:], low + step) - np.maximum(edges[:-1], low)) / step, 0, 1)
    used = np.flatnonzero(shares.any(axis=1))
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    return window, int(used[0]), shares[used[0] : used[-1] + 1].astype(np.float32)


@cache
def _floor() -> float:
    """Return what white noise of _FLOOR_LSB has in all bands over the windows that are summed."""
    window, _, bands = _filters()
    return float(_FLOOR_LSB**2 * np.square(window).sum() * bands.sum() * _SUMMED)
