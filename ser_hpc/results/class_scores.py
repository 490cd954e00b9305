"""Score each class by itself, with intervals over its speakers, for reports: recall, F1, and how much they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ser_hpc.results.intervals import Interval, class_intervals
from ser_hpc.results.speaker_counts import SpeakerCounts
from ser_hpc.tasks import metrics


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Recall and F1 of one class, over all trials together; nan where undefined. `num_clips`: of one seed (the most, where
    trials are missing); `num_speakers`: who
    have it, None where speakers are unknown."""

    name: str
    recall: float
    f1: float
    recall_interval: Interval
    f1_interval: Interval
    num_clips: int
    num_speakers: int | None


def score_classes(
    by_seed: np.ndarray, classes: Sequence[str], counts: SpeakerCounts | None, reason: str | None
) -> tuple[ClassScores, ...]:
    """Score every class. `by_seed`: counts of all trials (seeds, C, C); `counts`: None where there are no intervals, for that
    `reason`."""
    measures = (metrics.recalls, metrics.f1s)
    recalls, f1s = (of(by_seed.sum(0)) for of in measures)
    none = [Interval(None, reason)] * len(classes)
    recall_intervals, f1_intervals = (none if counts is None else class_intervals(of, counts.confusions) for of in measures)
    has = None if counts is None else (counts.confusions[0].sum(-1) > 0).sum(0)
    return tuple(
        ClassScores(
            name=name,
            recall=float(recalls[i]),
            f1=float(f1s[i]),
            recall_interval=recall_intervals[i],
            f1_interval=f1_intervals[i],
            num_clips=int(by_seed[:, i].sum(-1).max()),
            num_speakers=None if has is None else int(has[i]),
        )
        for i, name in enumerate(classes)
    )
