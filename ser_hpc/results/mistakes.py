"""Find what a run mistakes: the classes that it takes for each other, and the clips that it is wrong about and sure of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ser_hpc.results import plan_checks
from ser_hpc.run.predictions import Prediction

PAIRS, CLIPS = 6, 8  # shown


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """A true class, what it was taken for, how often (over all trials), and that as a share of the class."""

    truth: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class SureMistake:
    """A clip (`plan_checks.clip_name`) that is predicted wrongly, with the probability of the predicted and of the true class,
    each the mean over seeds."""

    clip: str
    speaker: str
    truth: str
    predicted: str
    confidence: float
    of_truth: float


def find_confused_pairs(confusion: np.ndarray, classes: Sequence[str]) -> tuple[ConfusedPair, ...]:
    """Return the pairs that are most often confused, of counts (C, C); the most frequent first."""
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return tuple(
        ConfusedPair(classes[i], classes[j], int(wrong[i, j]), float(wrong[i, j] / confusion[i].sum()))
        for i, j in pairs
        if wrong[i, j]
    )


def find_sure_mistakes(tested: Iterable[Prediction], classes: Sequence[str]) -> tuple[SureMistake, ...]:
    """Return the clips that the mean over seeds is wrong about with most confidence; the surest first."""
    by_clip: dict[str, list[Prediction]] = {}
    for p in tested:
        by_clip.setdefault(plan_checks.clip_name(p), []).append(p)
    found = []
    for clip, each in by_clip.items():
        mean = np.mean([[p.probabilities[name] for name in classes] for p in each], axis=0)
        best, truth = int(mean.argmax()), classes.index(each[0].truth)
        if best != truth:
            found.append(
                SureMistake(clip, each[0].speaker, classes[truth], classes[best], float(mean[best]), float(mean[truth]))
            )
    return tuple(sorted(found, key=lambda mistake: (-round(mistake.confidence, 9), mistake.clip))[:CLIPS])
