"""Count a run's test predictions by speaker, for what takes speakers as the sample: intervals, scores by class, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ser_hpc.results import plan_checks
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import Trial


@dataclass(frozen=True, slots=True)
class SpeakerCounts:
    """Clips by true (row) and predicted class: `confusions` int64 (seeds, speakers, C, C), seeds and speakers in order.

    `folds`: the fold that each speaker is tested in, int64 (speakers,); None where one is tested in several.
    """

    seeds: tuple[int, ...]
    speakers: tuple[str, ...]
    confusions: np.ndarray
    folds: np.ndarray | None


def count_by_speaker(
    tested: Mapping[Trial, Sequence[Prediction]], classes: Sequence[str], same: Mapping[str, str | None]
) -> SpeakerCounts | None:
    """Count; None where a clip's speaker is unknown, who may be anybody. `tested`: the test part's predictions of each trial.

    A speaker is a corpus and a name; `same`: names of one person (folds.speaker_aliases).
    """
    if not all(plan_checks.is_known(p) for predictions in tested.values() for p in predictions):
        return None
    named = {trial: [plan_checks.speaker_id(p, same) for p in predictions] for trial, predictions in tested.items()}
    seeds = sorted({trial.seed for trial in tested})
    speakers = sorted({name for names in named.values() for name in names})
    row, column = ({name: i for i, name in enumerate(names)} for names in (speakers, classes))
    confusions = np.zeros((len(seeds), len(speakers), len(classes), len(classes)), dtype=np.int64)
    folds: list[set[int]] = [set() for _ in speakers]
    for trial, predictions in tested.items():
        where = np.array([row[name] for name in named[trial]], dtype=np.int64)
        truth, predicted = (np.array([column[getattr(p, of)] for p in predictions], np.int64) for of in ("truth", "predicted"))
        np.add.at(confusions[seeds.index(trial.seed)], (where, truth, predicted), 1)
        for speaker in np.unique(where):
            folds[speaker].add(trial.fold)
    in_one = all(len(numbers) == 1 for numbers in folds)
    return SpeakerCounts(
        tuple(seeds), tuple(speakers), confusions, np.array([min(numbers) for numbers in folds]) if in_one else None
    )
