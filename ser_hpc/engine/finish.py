"""Record a trial's results, for the training loop: a part's scores, its predictions, and the marker that all is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ser_hpc.config.tasks import MAIN
from ser_hpc.core.atomic_io import seal, write_json_once
from ser_hpc.core.errors import UserError, listed
from ser_hpc.engine.fault import checkpoint
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.fault.preemption import Superseded
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.run import identity, predictions
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import AttemptDir, TrialDir


@dataclass(frozen=True, slots=True)
class PartScores:
    """Scores of a part. `chosen`: the one that chooses the epoch, higher is better; `uar` and `loss` (mean cross-entropy): of
    the main task; `others`: every score of each other task, by name."""

    chosen: float
    uar: float
    loss: float
    others: dict[str, dict[str, float]]


def score_part(outputs: Mapping[str, np.ndarray], positions: np.ndarray, data: TrialData, select_by: str = MAIN) -> PartScores:
    """Score `outputs`, by task (n, width), of the clips at `positions`. `select_by`: a task, or a score of it as `gender.uar`.

    Raises UserError for a score that the task does not have.
    """
    scores = {}
    for task in data.tasks:
        values = task.values[positions]
        given = task.target.is_given(values)
        scores[task.name] = task.target.scores(values[given], outputs[task.name][given])
    task_name, _, score = select_by.partition(".")
    task = next(task for task in data.tasks if task.name == task_name)
    score = score or task.target.best
    if score not in scores[task_name]:
        raise UserError(f"train.select_by={select_by}: {task_name} is scored by {listed(list(scores[task_name]), 20)}")
    main = data.tasks[0].name
    logits, targets = torch.from_numpy(outputs[main]), torch.from_numpy(data.targets[positions])
    return PartScores(
        chosen=scores[task_name][score],
        uar=scores[main]["uar"],
        loss=float(F.cross_entropy(logits, targets)),
        others={name: of_task for name, of_task in scores.items() if name != main},
    )


def predictions_of(part: str, positions: np.ndarray, outputs: Mapping[str, np.ndarray], data: TrialData) -> list[Prediction]:
    """Turn `outputs`, by task (n, width), of the clips at `positions`, (n,), into predictions."""
    metadata, classes, logits = data.index.metadata, data.classes, outputs[data.tasks[0].name]
    probabilities = torch.from_numpy(logits).double().softmax(dim=1).tolist()
    return [
        Prediction(
            corpus=metadata.corpus[position],
            utterance_id=metadata.utterance_id[position],
            speaker=metadata.speaker[position],
            part=part,
            truth=classes[data.targets[position]],
            predicted=classes[logits[i].argmax()],
            probabilities={name: round(p, 6) for name, p in zip(classes, probabilities[i], strict=True)},
            tasks={
                task.name: {
                    "truth": task.target.truth(task.values[position]),
                    "prediction": task.target.prediction(outputs[task.name][i]),
                }
                for task in data.tasks[1:]
            },
        )
        for i, position in enumerate(positions)
    ]


def write_done(
    trial: TrialDir,
    attempt: AttemptDir,
    state: TrainState,
    predictions_made: list[Prediction],
    conditions: Mapping[str, int | str],
) -> None:
    """Write the predictions, then the marker, and drop what is only for going on. Raises Superseded if a marker is there."""
    sha256 = predictions.write_predictions(attempt.predictions, predictions_made)
    recorded = identity.read_identity(trial.run)
    marker = {
        "run": recorded.identity.digest if recorded else None,
        "seed": trial.trial.seed,
        "fold": trial.trial.fold,
        "attempt": attempt.number,
        "predictions_sha256": sha256,
        "weights": attempt.best(state.best_evaluation).relative_to(trial.path).as_posix(),
        "best_epoch": state.best_epoch,
        "best_dev_uar": state.best_uar,
        "epochs": state.epoch,
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        **conditions,
    }
    if not write_json_once(trial.done, seal(marker)):
        raise Superseded(f"{trial.trial} was completed by another attempt; attempt {attempt.number} ends")
    checkpoint.clear(trial, attempt, state.best_evaluation)
