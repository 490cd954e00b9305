"""Score the tasks beside the main one, from the same predictions: trial by trial, and pooled over the folds of a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ser_hpc.core.errors import UserError
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import Trial
from ser_hpc.tasks.targets import OverClasses, Target, make_target


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of one task over the test parts of trials, by name of the score: `mean`, `std` (over trials; nan with one) and
    `pooled` (the clips of all folds of a seed as one set, averaged over seeds). `best` names the task's own."""

    name: str
    target: Target
    num_clips: int
    mean: dict[str, float]
    std: dict[str, float]
    pooled: dict[str, float]

    @property
    def best(self) -> str:
        return self.target.best

    @property
    def chance(self) -> float:
        """Return what a model that tells nothing apart scores: of classes 1 / classes, of numbers a concordance of 0."""
        return 1 / self.target.width if isinstance(self.target, OverClasses) else 0.0


def score_tasks(plan: Mapping[str, Any], tested: Mapping[Trial, Sequence[Prediction]]) -> tuple[TaskScores, ...]:
    """Score every task of the plan but the main one. `tested`: the predictions of each finished trial's test part.

    Raises UserError naming the trial where they are not what the plan asks for.
    """
    described = plan.get("tasks", {})
    return tuple(_score(name, dict(of_task), tested) for name, of_task in described.items()) if tested else ()


def _score(name: str, described: dict[str, Any], tested: Mapping[Trial, Sequence[Prediction]]) -> TaskScores:
    try:
        clips = described.pop("clips")
        target = make_target(described)
    except (KeyError, TypeError) as error:
        raise UserError(f"the plan's task {name!r} is not as it was written ({error!r}): launch the run again") from error
    read = {trial: _read(name, target, trial, predictions, clips) for trial, predictions in tested.items()}
    each = [target.scores(*pair) for pair in read.values()]
    seeds = sorted({trial.seed for trial in read})
    of_seeds = [[pair for trial, pair in read.items() if trial.seed == seed] for seed in seeds]
    pooled = [target.scores(*(np.concatenate(column) for column in zip(*pairs, strict=True))) for pairs in of_seeds]
    return TaskScores(
        name=name,
        target=target,
        num_clips=sum(len(values) for values, _ in of_seeds[0]),
        mean={score: float(np.mean([one[score] for one in each])) for score in each[0]},
        std={
            score: float(np.std([one[score] for one in each], ddof=1)) if len(each) > 1 else float("nan") for score in each[0]
        },
        pooled={score: float(np.mean([one[score] for one in pooled])) for score in each[0]},
    )


def _read(
    name: str, target: Target, trial: Trial, predictions: Sequence[Prediction], clips: Mapping[str, Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Read the values and outputs of the clips that have a target, as many as planned."""
    try:
        pairs = [(p.tasks[name]["truth"], p.tasks[name]["prediction"]) for p in predictions]
        values, outputs = target.read([pair for pair in pairs if pair[0] is not None])
        if not np.isfinite(outputs).all():
            raise ValueError("a prediction is no finite number")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{trial}: its predictions of the task {name!r} are not what was planned ({error!r})") from error
    if len(values) != (planned := clips["test"][trial.fold]):
        raise UserError(
            f"{trial}: {len(values)} of its test clips have a target of the task {name!r}, and {planned} were planned"
        )
    return values, outputs
