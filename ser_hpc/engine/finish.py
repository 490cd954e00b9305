"""Record a trial's results, for the training loop: a part's scores, its predictions, and the marker that all is there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from ser_hpc.core.atomic_io import seal, write_json_once
from ser_hpc.engine.fault import checkpoint
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.fault.preemption import Superseded
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.results.metrics import confusion_matrix, uar
from ser_hpc.run import identity, predictions
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import AttemptDir, TrialDir


def score_part(logits: np.ndarray, targets: np.ndarray, num_classes: int) -> tuple[float, float]:
    """Compute UAR and mean cross-entropy of a part."""
    confusion = confusion_matrix(targets, logits.argmax(axis=1), num_classes)
    return float(uar(confusion)), float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)))


def predictions_of(part: str, positions: np.ndarray, logits: np.ndarray, data: TrialData) -> list[Prediction]:
    """Turn `logits` (n, num_classes) of the clips at `positions`, (n,), into predictions."""
    metadata, classes = data.index.metadata, data.classes
    probabilities = torch.from_numpy(logits).double().softmax(dim=1).tolist()
    return [
        Prediction(
            corpus=metadata.corpus[position],
            utterance_id=metadata.utterance_id[position],
            speaker=metadata.speaker[position],
            part=part,
            truth=classes[data.targets[position]],
            predicted=classes[row.argmax()],
            probabilities={name: round(p, 6) for name, p in zip(classes, probability, strict=True)},
        )
        for position, row, probability in zip(positions, logits, probabilities, strict=True)
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
        "weights": attempt.best(state.best_epoch).relative_to(trial.path).as_posix(),
        "best_epoch": state.best_epoch,
        "best_dev_uar": state.best_uar,
        "epochs": state.epoch,
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        **conditions,
    }
    if not write_json_once(trial.done, seal(marker)):
        raise Superseded(f"{trial.trial} was completed by another attempt; attempt {attempt.number} ends")
    checkpoint.clear(trial, attempt, state.best_epoch)
