"""Hold what predicting finds: of a clip or a window its classes' probabilities, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DIGITS = 6  # of probabilities, where they are written


@dataclass(frozen=True, slots=True)
class ClipPrediction:
    """A prediction of a recording's stretch from `start_s` to `end_s`, in seconds. `label`: its most probable class, with the
    probability `confidence`; `tasks`: of each other task of the model, its classes' probabilities or its numbers, by name;
    `cut`: the recording goes on, but this is all that the model hears of a clip; `strange`: it is unlike all clips that a probe
    was fitted to, so that label and confidence may mean little."""

    audio: str
    start_s: float
    end_s: float
    label: str
    confidence: float
    probabilities: dict[str, float]
    tasks: dict[str, Any] = field(default_factory=dict)
    cut: bool = False
    strange: bool = False

    def as_json(self, unsure: float | None = None) -> dict[str, Any]:
        """Return the object of a JSON line. `unsure`: with a field that says whether the confidence is below it."""
        return {
            "audio": self.audio,
            "start_s": round(self.start_s, 4),
            "end_s": round(self.end_s, 4),
            "label": self.label,
            "confidence": round(self.confidence, DIGITS),
            **({} if unsure is None else {"unsure": self.confidence < unsure}),
            "probabilities": {name: round(p, DIGITS) for name, p in self.probabilities.items()},
            **({"tasks": self.tasks} if self.tasks else {}),
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """A recording that could not be predicted, from some place on, and why: a clause whose subject is the recording."""

    audio: str
    reason: str

    def __str__(self) -> str:
        return f"{self.audio} {self.reason}"
