"""Keep a frozen encoder, its fingerprint and what it made of the clips so far, for the trials that one process trains in turn.

Each of them ends in the same bits as alone: the encoder is never trained, and features are read from the run's cache
(feature_cache.py) or put there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ser_hpc.config.settings import EncoderModel, Settings
from ser_hpc.engine.frozen_params import FrozenParameters
from ser_hpc.models.classifier import Classifier


@dataclass(frozen=True, slots=True)
class PooledFeatures:
    """States of clips: row i belongs to the clip at `positions[i]` of the index; `positions` rise.

    `means` (clips, width) float32: the mean of each clip's frames, or what else the head wants of them; zeros where no trial
    had a use for them yet; `causes` (clips,) int64: CorruptionCause, or 0.
    """

    positions: np.ndarray
    means: np.ndarray
    causes: np.ndarray


@dataclass(slots=True)
class LoadedEncoder:
    """`model`: the encoder under a head; `base`: its frozen parameters; `states`: of the blocks of clips in `blocks`, without
    those that hold a damaged clip; None: of none yet. `fits`: weights and biases of probes, by what they were fitted to."""

    model: Classifier
    base: FrozenParameters
    states: PooledFeatures | None = None
    blocks: set[int] = field(default_factory=set)
    fits: dict[tuple[bytes, float], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


class FrozenEncoder:
    """Holder of a run's frozen encoder, which its first trial loads."""

    def __init__(self) -> None:
        self._loaded: LoadedEncoder | None = None
        self._seed: int | None = None

    def load(self, settings: Settings, seed: int, build: Callable[[], Classifier]) -> LoadedEncoder:
        """Return the encoder; `build` makes a model with it, unless an earlier trial has. `seed`: that its weights are drawn
        with, where they are drawn; then each seed has an encoder of its own."""
        drawn = seed if isinstance(settings.model, EncoderModel) and settings.model.weights is None else None
        if self._loaded is None or drawn != self._seed:
            self._loaded = None  # before there are two
            model = build()
            self._loaded, self._seed = LoadedEncoder(model, FrozenParameters.from_model(model)), drawn
        return self._loaded
