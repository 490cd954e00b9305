"""Put a clip into a room that is not there: a synthetic response, convolved with it by torchaudio.

A room's late response is modelled as noise that decays exponentially (Polack 1988), 60 dB within the reverberation time, behind
the direct sound. No recorded responses are needed; for those there is audiomentations' ApplyImpulseResponse.
"""

from __future__ import annotations

import numpy as np

from ser_hpc.config.transforms import RoomResponseSettings

_DECAY_60_DB = 3 * np.log(10)  # of the amplitude, over the reverberation time


class RoomResponse:
    """A transform: draws a room for each clip from numpy.random."""

    def __init__(self, settings: RoomResponseSettings) -> None:
        self._settings = settings

    def __call__(self, sound: np.ndarray, rate: int) -> np.ndarray:
        """Reverberate `sound`, float32 (num_samples,), at `rate` Hz: as long as before, and as loud."""
        import torch  # workers that augment otherwise do without
        from torchaudio.functional import fftconvolve

        response = draw_response(self._settings, rate)
        wet = fftconvolve(torch.from_numpy(sound), torch.from_numpy(response)).numpy()[: len(sound)]
        loudness, before = float(np.sqrt((wet**2).mean())), float(np.sqrt((sound**2).mean()))
        reverberated: np.ndarray = wet * np.float32(before / loudness) if loudness else wet
        return reverberated


def draw_response(settings: RoomResponseSettings, rate: int) -> np.ndarray:
    """Draw a response, float32 (num_samples,) at `rate` Hz: 1 for the direct sound, then decaying noise."""
    rt60 = np.random.uniform(*settings.rt60_s)
    ratio_db = np.random.uniform(*settings.direct_to_reverberant_db)
    times = np.arange(1, max(2, round(rt60 * rate))) / rate
    tail = np.random.standard_normal(len(times)) * np.exp(-_DECAY_60_DB * times / rt60)
    tail *= 10 ** (-ratio_db / 20) / np.sqrt((tail**2).sum())
    return np.concatenate([[1.0], tail]).astype(np.float32)
