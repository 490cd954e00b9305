"""Sound that goes up and down as speech does, for tests of what tells one recording from another."""

from __future__ import annotations

import numpy as np
import soxr

RATE = 16_000


def babble(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Thirty tones between 200 and 4000 Hz, each as loud as it likes every twelfth of a second: float (num_samples,)."""
    times = np.arange(round(seconds * RATE)) / RATE
    marks = np.arange(int(seconds * 12) + 2) / 12
    sound = np.zeros(len(times))
    for pitch in np.geomspace(200, 4000, 30) * rng.uniform(0.97, 1.03, 30):
        sound += np.interp(times, marks, rng.exponential(1, len(marks)) ** 2) * np.sin(
            2 * np.pi * (pitch * times + rng.random())
        )
    return 0.3 * sound / np.abs(sound).max()


# What a recording may undergo without being another one; MP3 is how the file is written.
CHANGES = {
    "gain": lambda sound: sound * 10 ** (0.1 / 20),
    "trimmed": lambda sound: sound[RATE // 100 :],
    "padded": lambda sound: np.concatenate([np.zeros(RATE // 100), sound]),
    "resampled": lambda sound: soxr.resample(soxr.resample(sound, RATE, 22_050), 22_050, RATE),
    "mp3": lambda sound: sound,
    "inverted": lambda sound: -sound,
    "one_changed": lambda sound: sound + 0.01 * (np.arange(len(sound)) == len(sound) // 2),
}
