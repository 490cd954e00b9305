"""Mix clips for training (mixup, Zhang et al. 2018): each with another clip of its optimizer step, the *partner*.

Partners and shares are drawn for the step as a whole, as a function of (seed, step); then they travel with the clip, and the
partner's sound is loaded beside the clip's own, wherever that is: no cut of the step into micro-batches or ranks changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ser_hpc.config.extension_errors import check_made, explain_errors
from ser_hpc.config.extensions import is_outside
from ser_hpc.config.mixup import MixupSettings
from ser_hpc.data.sampler import ClipSelection, mix_seed
from ser_hpc.shards import RATE

_MIXUP = 0x3117  # what a hash is for: its uses never share numbers


def pair_clips(steps: list[ClipSelection], settings: MixupSettings | None, seed: int, first: int) -> list[ClipSelection]:
    """Give each clip of the steps its partner and its share of their mixture; none: leave the steps as they are.

    `first`: the number of the first of them. The partners go round in a random order of the step's clips, so that each clip is
    one clip's partner; the only clip of a step is its own.
    """
    if settings is None:
        return steps
    return [_paired(step, settings, mix_seed(seed, first + i, _MIXUP)) for i, step in enumerate(steps)]


def _paired(clips: ClipSelection, settings: MixupSettings, seed: int) -> ClipSelection:
    # RandomState's numbers are the same in every release of numpy (NEP 19).
    draws = np.random.RandomState([seed >> 32, seed & 0xFFFFFFFF])
    order = draws.permutation(len(clips))
    partners = np.empty_like(order)
    partners[order] = np.roll(order, -1)
    shares = draws.beta(settings.alpha, settings.alpha, len(clips))
    shares[draws.random_sample(len(clips)) >= settings.p] = 1.0
    return replace(clips, partners=clips.take(partners), shares=shares)


class Mixer:
    """The mixture of two clips that settings describe. Travels to other processes as its settings."""

    def __init__(self, settings: MixupSettings) -> None:
        self._settings = settings
        self._mix: Callable[[np.ndarray, np.ndarray, float], np.ndarray] = mix
        if is_outside(settings.kind):
            with explain_errors(settings.kind):
                self._mix = settings.build()
            check_made(f"{settings.kind}.build", self._mix, callable(self._mix), "a function of clip, partner and share")

    def __call__(self, clip: np.ndarray, partner: np.ndarray, share: float) -> np.ndarray:
        """Mix a clip, of which there is so large a `share`, with its partner: int16 or float32 (n,), each -> float32 (n,)."""
        clip, partner = _full_scale(clip), _full_scale(partner)
        if share == 1:
            return clip
        with explain_errors(self._settings.kind or "data.mixup"):
            mixed = self._mix(clip, partner, share)
        fits = isinstance(mixed, np.ndarray) and mixed.shape == clip.shape and np.issubdtype(mixed.dtype, np.floating)
        check_made(self._settings.kind, mixed, fits, f"an array of floats as long as the clip, {clip.shape}")
        return np.asarray(mixed, dtype=np.float32)

    def __reduce__(self) -> tuple[type[Mixer], tuple[MixupSettings]]:
        return Mixer, (self._settings,)


def check_mixup(settings: MixupSettings | None) -> None:
    """Mix two sounds of a second and of half of one, before anything is submitted. Raises UserError."""
    if settings is not None:
        noise = (np.random.default_rng(0).standard_normal(RATE) * 0.1).astype(np.float32)
        Mixer(settings)(noise, noise[: len(noise) if settings.of_states else len(noise) // 2], 0.5)


def mix(clip: np.ndarray, partner: np.ndarray, share: float) -> np.ndarray:
    """Add up share x clip and (1 - share) x partner, as long as the clip: the partner is cut, or silence follows it."""
    mixed: np.ndarray = clip * np.float32(share)
    shorter = min(len(clip), len(partner))
    mixed[:shorter] += partner[:shorter] * np.float32(1 - share)
    return mixed


def _full_scale(sound: np.ndarray) -> np.ndarray:
    """Return int16 as float32, 1 being its full scale; floats as they are."""
    return sound.astype(np.float32) / 32768 if sound.dtype == np.int16 else sound
