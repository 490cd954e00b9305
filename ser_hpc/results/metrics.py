"""Compute a classifier's scores from confusion matrices, and their confidence interval with speakers as the sample.

A confusion matrix has shape (..., C, C): rows are the true classes, columns the predicted ones, entries count clips. Leading
dimensions (seeds, resamples) are carried through, so a bootstrap of thousands of resamples is a few array operations.

A class that does not occur in the truth has no recall. It is left out of UAR and macro-F1 rather than counted as 0, as
scikit-learn's `balanced_accuracy_score` does for UAR. For macro-F1 this differs from `f1_score(average="macro")`, which also
averages over classes that were only predicted (each an F1 of 0): ours is `f1_score(labels=<classes in the truth>)`, so UAR and
macro-F1 average over the same classes; a wrong prediction still costs the recall of the true class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
MIN_SPEAKERS = 5  # with fewer there are too few different resamples for a 95 % interval to mean anything
_SEED = 20180607  # fixed: the same predictions give the same interval


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count clips by true (row) and predicted (column) class, int64 (C, C), from class indices of shape (num_clips,)."""
    truth, predicted = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    assert truth.shape == predicted.shape and all(((i >= 0) & (i < num_classes)).all() for i in (truth, predicted))
    counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def recalls(confusion: np.ndarray) -> np.ndarray:
    """Compute the recall of every class, (..., C); nan where the class does not occur in the truth."""
    return _ratio(_hits(confusion), confusion.sum(-1))


def uar(confusion: np.ndarray) -> np.ndarray:
    """Compute unweighted average recall over the classes that occur in the truth, (...); nan if there is no clip."""
    return _mean_over_present(recalls(confusion), confusion)


def wa(confusion: np.ndarray) -> np.ndarray:
    """Compute weighted accuracy, the field's name for plain accuracy: clips that are right over all clips, (...)."""
    return _ratio(_hits(confusion).sum(-1), confusion.sum((-2, -1)))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Compute mean F1 over the classes that occur in the truth, (...); nan if there is no clip."""
    f1 = _ratio(2 * _hits(confusion), confusion.sum(-1) + confusion.sum(-2))
    return _mean_over_present(f1, confusion)


def cohen_kappa(confusion: np.ndarray) -> np.ndarray:
    """Compute agreement beyond chance (Cohen 1960), (...); nan where chance agrees fully (one class, true and predicted)."""
    total = confusion.sum((-2, -1))
    by_chance = (confusion.sum(-1) * confusion.sum(-2)).sum(-1)
    return _ratio(total * _hits(confusion).sum(-1) - by_chance, total * total - by_chance)


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


def _hits(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; nan where the denominator is 0."""
    undefined = np.full(np.shape(numerator), np.nan)
    quotient: np.ndarray = np.divide(numerator, denominator, out=undefined, where=np.asarray(denominator) != 0)
    return quotient


def _mean_over_present(scores: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Average per-class `scores` (..., C) over the classes that occur in the truth."""
    present = confusion.sum(-1) > 0
    return _ratio(np.where(present, scores, 0).sum(-1), present.sum(-1))
