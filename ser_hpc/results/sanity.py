"""Find what looks like a result and is none, for the report: a model that predicts one class for all, a loss that diverged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np

from ser_hpc.core.errors import listed
from ser_hpc.run.run_dir import Trial, TrialDir

_FEW_CLIPS = 10  # of a class in a test part: one clip more or less right is ten points of its recall
_DIVERGED = 2.0  # times the loss of a model that tells nothing apart


def sanity_warnings(
    folders: Iterable[TrialDir],
    confusions: Mapping[Trial, np.ndarray],
    classes: Sequence[str],
    *,
    alone: bool = True,
) -> list[str]:
    """Return warnings for the top of a report. `confusions`: of each finished trial's test part, true by predicted, (C, C);
    `alone`: there is no other task, whose loss would be part of the training loss."""
    found = []
    if confusions:
        total = np.sum(list(confusions.values()), axis=0)
        never = [classes[int(i)] for i in np.flatnonzero((total.sum(0) == 0) & (total.sum(1) > 0))]
        if never:
            found.append(f"Of {len(classes)} classes {len(never)} are never predicted: {listed(never, 30)}.")
        same = {trial: int(of.sum(0).argmax()) for trial, of in confusions.items() if (of.sum(0) > 0).sum() == 1 < len(of)}
        if same:
            each = listed([f"{trial} ({classes[i]})" for trial, i in same.items()], 12)
            found.append(f"The model has collapsed: every test clip is given the same class in {each}.")
        if few := _few_clips(confusions, classes):
            found.append(few)
    if ran_away := [message for folder in folders if alone and (message := _diverged(folder, len(classes)))]:
        found.append(
            f"Training has diverged: the loss ended at {listed(ran_away, 12)}; telling nothing apart makes it "
            f"{math.log(len(classes)):.3g}."
        )
    return found


def _few_clips(confusions: Mapping[Trial, np.ndarray], classes: Sequence[str]) -> str | None:
    """Name the classes of which a test part has few clips."""
    clips = {trial.fold: of.sum(1) for trial, of in confusions.items()}
    few = [
        f"{int(n)} of {name} in fold {fold}"
        for fold, of in sorted(clips.items())
        for name, n in zip(classes, of, strict=True)
        if 0 < n < _FEW_CLIPS
    ]
    if not few:
        return None
    return f"Test parts with under {_FEW_CLIPS} clips of a class, whose recall there says little: {listed(few, 6)}."


def _diverged(folder: TrialDir, num_classes: int) -> str | None:
    """Name the trial and its training loss if that ended far above the loss of a model which tells no classes apart."""
    with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        lines = folder.current.epochs.read_text(encoding="utf-8").splitlines()
        loss = float(json.loads(lines[-1])["train_loss"])
        if not loss <= _DIVERGED * math.log(num_classes):
            return f"{loss:.3g} in {folder.trial}"
    return None
