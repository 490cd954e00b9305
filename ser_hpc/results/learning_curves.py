"""Read how the trials of a run learned, evaluation by evaluation, from what they wrote down while they did."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ser_hpc.run.run_dir import RunDir, Trial

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """One trial's training loss and dev UAR at each evaluation, nan where it wrote none; `chosen`: the index of that whose
    weights were tested. `unit`: what evaluations stand for, "epoch", or "evaluation" where they were made every so many
    steps."""

    trial: Trial
    train_loss: tuple[float, ...]
    dev_uar: tuple[float, ...]
    chosen: int
    unit: str = "epoch"


def read_curves(run: RunDir, chosen: Iterable[tuple[Trial, int]]) -> tuple[LearningCurve, ...]:
    """Read the curves of finished trials, each given with its chosen epoch; those that cannot be read are left out.

    Scores never come from here: a curve shows how training went.
    """
    found = []
    for trial, epoch in chosen:
        with suppress(*_UNREADABLE, IndexError):
            lines = run.trial(trial).current.epochs.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            losses, scores = (tuple(_number(row.get(name)) for row in rows) for name in ("train_loss", "dev_uar"))
            best = [number for number, row in enumerate(rows) if row.get("best")] or [epoch]
            unit = "evaluation" if "evaluation" in rows[0] else "epoch"
            found.append(LearningCurve(trial, losses, scores, best[-1], unit))
    return tuple(found)


def _number(value: Any) -> float:
    return math.nan if value is None or not math.isfinite(number := float(value)) else number
