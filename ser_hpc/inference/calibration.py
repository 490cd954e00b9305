"""Calibrate: divide a trial's logits by one temperature, so that of clips of confidence 0.8 about 80 % are right.

Guo et al. 2017 ("On Calibration of Modern Neural Networks"): the temperature minimises the cross-entropy on held-out clips,
here the trial's dev part, as its saved predictions have it; the test part is never looked at. It changes no prediction's class,
only how sure it is. Where dev had no mistake the optimum would be certainty; so of n clips 1 / (n + 2) of each target is spread
over all classes, as Platt (1999) smoothed his.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ser_hpc.inference.spec import Calibration
from ser_hpc.run.predictions import Prediction
from ser_hpc.tasks.reliability import expected_calibration_error
from ser_hpc.tasks.targets import ClassTarget, Target, softmax

_BOUNDS = (0.02, 50.0)  # of 1 / temperature
_ROUNDED = 5e-7  # half of the last digit of a saved probability


def calibrate(dev: Sequence[Prediction], targets: dict[str, Target]) -> dict[str, Calibration]:
    """Fit the temperature of each task that is one of several classes, on the clips of `dev` that have a target of it."""
    main = next(iter(targets))
    found = {}
    for name, target in targets.items():
        if not isinstance(target, ClassTarget):
            continue
        pairs: list[tuple[Any, Any]] = (
            [(p.truth, p.probabilities) for p in dev]
            if name == main
            else [(p.tasks[name]["truth"], p.tasks[name]["prediction"]) for p in dev if p.tasks[name]["truth"] is not None]
        )
        if pairs:
            truth, probabilities = target.read(pairs)
            found[name] = _calibration(np.log(np.maximum(probabilities, _ROUNDED)), truth)
    return found


def _calibration(logits: np.ndarray, truth: np.ndarray) -> Calibration:
    temperature = fit_temperature(logits, truth)
    before, after = (expected_calibration_error(softmax(logits / t), truth) for t in (1.0, temperature))
    return Calibration(temperature, round(before, 6), round(after, 6), len(truth))


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """Find the temperature, from 0.02 to 50, of logits (n, C) with class indices (n,): of a convex function, so the same from
    the same predictions. Rounded to four digits."""
    from scipy.optimize import minimize_scalar  # a second to import, for whoever only starts from a model

    clips, classes = logits.shape
    spread = 1 / (clips + 2)
    wanted = np.full((clips, classes), spread / classes)
    wanted[np.arange(clips), truth] += 1 - spread
    logits = logits - logits.max(axis=1, keepdims=True)

    def loss(log_sharpness: float) -> float:
        scaled = logits * np.exp(log_sharpness)
        return float((np.log(np.exp(scaled).sum(axis=1)) - (wanted * scaled).sum(axis=1)).mean())

    best = minimize_scalar(loss, bounds=np.log(_BOUNDS), method="bounded", options={"xatol": 1e-6})
    return float(f"{np.exp(-best.x):.4g}")
