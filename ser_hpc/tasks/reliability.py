"""Measure how far a confidence is to be believed: how often predictions of a confidence are right (Guo et al. 2017, "On
Calibration of Modern Neural Networks")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15  # of confidence, of equal width


@dataclass(frozen=True, slots=True)
class Reliability:
    """Clips by the confidence of their predicted class, bin by bin, each (BINS,): `clips`, their mean `confidence` and the
    share that is right (`accuracy`); nan where a bin has no clip."""

    clips: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Return the expected calibration error (eq. 3): the mean gap of confidence and accuracy, weighted by clips."""
        gaps = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float((gaps * self.clips).sum() / self.clips.sum())


def measure_reliability(confidence: np.ndarray, right: np.ndarray) -> Reliability:
    """Sort predictions into bins of their `confidence` in [0, 1], (n,); `right`: whether they are, bool (n,)."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    clips = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, weights=values, minlength=BINS) for values in (confidence, right))
    with np.errstate(invalid="ignore"):
        mean, accuracy = (total / clips for total in sums)
    return Reliability(clips, mean, accuracy)


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Compute the expected calibration error of the predicted class, of probabilities (n, C) and class indices (n,)."""
    return measure_reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth).error
