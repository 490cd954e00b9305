"""Look closer at a run than its scores do: for whom it works, how sure it is, what it mistakes, and how it learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ser_hpc.results.cross_validation import CrossValidation
from ser_hpc.results.groups import Group, score_groups
from ser_hpc.results.learning_curves import LearningCurve, read_curves
from ser_hpc.results.mistakes import ConfusedPair, SureMistake, find_confused_pairs, find_sure_mistakes
from ser_hpc.results.shard_clips import find_shard_clips
from ser_hpc.run.run_dir import RunDir
from ser_hpc.tasks.reliability import Reliability, measure_reliability


@dataclass(frozen=True, slots=True)
class Details:
    """What stands below the scores, all of it over the finished trials' test parts. `unseen`: why gender and length of
    clips are not known, None where they are; `sounds`: FLAC of the `mistakes`, by clip, where the shards are there."""

    groups: tuple[Group, ...]
    unseen: str | None
    reliability: Reliability
    confused: tuple[ConfusedPair, ...]
    mistakes: tuple[SureMistake, ...]
    curves: tuple[LearningCurve, ...]
    sounds: Mapping[str, bytes]


def look_closer(run: RunDir, cv: CrossValidation) -> Details | None:
    """Find all of it; None while no trial is finished."""
    if cv.finished is None:
        return None
    shards, unseen = find_shard_clips(run, cv.plan)
    tested = [p for t in cv.trials for p in t.test]
    confidence = np.array([p.probabilities[p.predicted] for p in tested])
    mistakes = find_sure_mistakes(tested, cv.classes)
    return Details(
        groups=score_groups(cv, shards),
        unseen=unseen,
        reliability=measure_reliability(confidence, np.array([p.predicted == p.truth for p in tested])),
        confused=find_confused_pairs(cv.finished.confusion, cv.classes),
        mistakes=mistakes,
        curves=read_curves(run, ((t.trial, t.best_epoch) for t in cv.trials)),
        sounds=shards.sounds(mistake.clip for mistake in mistakes) if shards else {},
    )
