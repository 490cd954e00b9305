"""Compute the scores of tasks: of classes from confusion matrices, of numbers from truth and prediction.

A confusion matrix has shape (..., C, C): rows are the true classes, columns the predicted ones, entries count clips. Leading
dimensions (seeds, resamples) are carried through, so a bootstrap of thousands of resamples is a few array operations.

A class that does not occur in the truth has no recall. It is left out of UAR and macro-F1 rather than counted as 0, as
scikit-learn's `balanced_accuracy_score` does for UAR. For macro-F1 this differs from `f1_score(average="macro")`, which also
averages over classes that were only predicted (each an F1 of 0): ours is `f1_score(labels=<classes in the truth>)`, so UAR and
macro-F1 average over the same classes; a wrong prediction still costs the recall of the true class.
"""

from __future__ import annotations

import numpy as np


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count clips by true (row) and predicted (column) class, int64 (C, C), from class indices of shape (num_clips,)."""
    truth, predicted = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    assert truth.shape == predicted.shape and all(((i >= 0) & (i < num_classes)).all() for i in (truth, predicted))
    counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def recalls(confusion: np.ndarray) -> np.ndarray:
    """Compute the recall of every class, (..., C); nan where the class does not occur in the truth."""
    return _ratio(_hits(confusion), confusion.sum(-1))


def f1s(confusion: np.ndarray) -> np.ndarray:
    """Compute the F1 of every class, (..., C); nan where the class occurs neither in the truth nor among predictions."""
    return _ratio(2 * _hits(confusion), confusion.sum(-1) + confusion.sum(-2))


def uar(confusion: np.ndarray) -> np.ndarray:
    """Compute unweighted average recall over the classes that occur in the truth, (...); nan if there is no clip."""
    return _mean_over_present(recalls(confusion), confusion)


def wa(confusion: np.ndarray) -> np.ndarray:
    """Compute weighted accuracy, the field's name for plain accuracy: clips that are right over all clips, (...)."""
    return _ratio(_hits(confusion).sum(-1), confusion.sum((-2, -1)))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Compute mean F1 over the classes that occur in the truth, (...); nan if there is no clip."""
    return _mean_over_present(f1s(confusion), confusion)


def cohen_kappa(confusion: np.ndarray) -> np.ndarray:
    """Compute agreement beyond chance (Cohen 1960), (...); nan where chance agrees fully (one class, true and predicted)."""
    total = confusion.sum((-2, -1))
    by_chance = (confusion.sum(-1) * confusion.sum(-2)).sum(-1)
    return _ratio(total * _hits(confusion).sum(-1) - by_chance, total * total - by_chance)


def concordance(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Compute Lin's concordance correlation (1989) of two columns (num_clips,); nan where neither of them varies."""
    gap = float(truth.mean() - predicted.mean()) if len(truth) else 0.0
    spread = float(truth.var() + predicted.var()) + gap**2 if len(truth) else 0.0
    if not spread:
        return float("nan")
    return 2 * float(((truth - truth.mean()) * (predicted - predicted.mean())).mean()) / spread


def rmse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Compute the root of the mean squared error; nan if there is no clip."""
    return float(np.sqrt(((truth - predicted) ** 2).mean())) if len(truth) else float("nan")


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
