"""The kinds of target: a class, a distribution over classes, or numbers. Each says how wide its outputs are, scores them, and
writes truth and prediction as JSON.

From outside the package: derive from `Target`; the report makes yours again from `describe`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ser_hpc.config.extensions import import_outside, is_outside
from ser_hpc.core.errors import UserError, listed
from ser_hpc.tasks import metrics

Json = Any


class Target(ABC):
    """A kind of target. Values of all clips are an array whose first dimension is the clips'; `outputs` are (n, width) float32.

    `kind`: its name in plan.json, `module:Class` of one from outside; `best`: the score that chooses the epoch, higher is
    better.
    """

    kind: ClassVar[str]
    best: ClassVar[str]

    @property
    @abstractmethod
    def width(self) -> int:
        """Return the number of the task's outputs."""

    @abstractmethod
    def is_given(self, values: np.ndarray) -> np.ndarray:
        """Return a mask of the clips that have a target, (n,) bool."""

    @abstractmethod
    def scores(self, values: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """Score outputs against values, both of clips that have a target; nan where undefined."""

    @abstractmethod
    def truth(self, value: Any) -> Json:
        """Write one clip's target for the predictions; null where it has none."""

    @abstractmethod
    def prediction(self, output: np.ndarray) -> Json:
        """Write one clip's prediction, of its outputs (width,)."""

    @abstractmethod
    def read(self, pairs: Sequence[tuple[Json, Json]]) -> tuple[np.ndarray, np.ndarray]:
        """Read (truth, prediction) pairs back as values and outputs that score alike.

        Raises ValueError, KeyError or TypeError for what `truth` and `prediction` do not write.
        """

    def describe(self) -> dict[str, Json]:
        """Return what makes it again, for plan.json: its fields, as it is a frozen dataclass."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class OverClasses(Target):
    """What is predicted as a probability of each of several classes: outputs are logits."""

    classes: tuple[str, ...]

    @property
    def width(self) -> int:
        return len(self.classes)

    def prediction(self, output: np.ndarray) -> Json:
        return {name: round(p, 6) for name, p in zip(self.classes, softmax(output).tolist(), strict=True)}


@dataclass(frozen=True)
class ClassTarget(OverClasses):
    """One of several classes: values are int64 class indices, -1 where a clip has none."""

    kind: ClassVar[str] = "class"
    best: ClassVar[str] = "uar"

    def is_given(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values >= 0)

    def scores(self, values: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """Compute UAR, accuracy (WA), macro-F1 and Cohen's kappa."""
        confusion = metrics.confusion_matrix(values, outputs.argmax(axis=1), self.width)
        of = {"uar": metrics.uar, "wa": metrics.wa, "macro_f1": metrics.macro_f1, "kappa": metrics.cohen_kappa}
        return {name: float(score(confusion)) for name, score in of.items()}

    def truth(self, value: Any) -> Json:
        return self.classes[int(value)] if value >= 0 else None

    def read(self, pairs: Sequence[tuple[Json, Json]]) -> tuple[np.ndarray, np.ndarray]:
        index = {name: i for i, name in enumerate(self.classes)}
        values = np.array([index[truth] for truth, _ in pairs], dtype=np.int64)
        outputs = np.array([[float(predicted[name]) for name in self.classes] for _, predicted in pairs])
        return values, outputs.reshape(len(pairs), self.width)


@dataclass(frozen=True)
class DistributionTarget(OverClasses):
    """Shares of several classes: values are (n, C) float32, nan where a clip has none."""

    kind: ClassVar[str] = "distribution"
    best: ClassVar[str] = "uar"

    def is_given(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(np.isfinite(values).all(axis=1))

    def scores(self, values: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """Compute the UAR against the class that has most votes, of clips that have one such, and minus the mean divergence."""
        ordered = np.sort(values, axis=1)
        clear = ordered[:, -1] > ordered[:, -2]
        confusion = metrics.confusion_matrix(values[clear].argmax(1), outputs[clear].argmax(1), self.width)
        predicted = np.clip(softmax(outputs), 1e-9, 1)
        divergence = np.where(values > 0, values * np.log(np.maximum(values, 1e-9) / predicted), 0).sum(1)
        mean = float(-divergence.mean()) if len(values) else float("nan")
        return {"uar": float(metrics.uar(confusion)), "minus_kl": mean}

    def truth(self, value: Any) -> Json:
        if not np.isfinite(value).all():
            return None
        return {name: round(float(share), 6) for name, share in zip(self.classes, value, strict=True)}

    def read(self, pairs: Sequence[tuple[Json, Json]]) -> tuple[np.ndarray, np.ndarray]:
        values, predicted = (
            np.array([[float(row[name]) for name in self.classes] for row in rows]).reshape(len(pairs), self.width)
            for rows in _columns(pairs)
        )
        return values, np.log(np.clip(predicted, 1e-9, 1))


@dataclass(frozen=True)
class NumbersTarget(Target):
    """Numbers on a scale from `low` to `high`: values are (n, K) float32, moved to 0 to 1, nan where a clip has none; so are
    outputs. Truth and prediction are written on the scale itself."""

    names: tuple[str, ...]
    low: float
    high: float
    kind: ClassVar[str] = "numbers"
    best: ClassVar[str] = "ccc"

    @property
    def width(self) -> int:
        return len(self.names)

    def is_given(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(np.isfinite(values).all(axis=1))

    def scores(self, values: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """Compute concordance and root mean squared error of each number (on its scale), and `ccc`, the mean concordance."""
        truth, predicted = (np.asarray(x, dtype=np.float64) * (self.high - self.low) for x in (values, outputs))
        columns = [(name, truth[:, i], predicted[:, i]) for i, name in enumerate(self.names)]
        each = {f"ccc_{name}": metrics.concordance(t, p) for name, t, p in columns}
        errors = {f"rmse_{name}": metrics.rmse(t, p) for name, t, p in columns}
        return {"ccc": float(np.mean(list(each.values()))), **each, **errors}

    def truth(self, value: Any) -> Json:
        return self._written(value) if np.isfinite(value).all() else None

    def prediction(self, output: np.ndarray) -> Json:
        return self._written(output)

    def read(self, pairs: Sequence[tuple[Json, Json]]) -> tuple[np.ndarray, np.ndarray]:
        values, outputs = (
            (np.array([[float(row[name]) for name in self.names] for row in rows]).reshape(len(pairs), self.width) - self.low)
            / (self.high - self.low)
            for rows in _columns(pairs)
        )
        return values, outputs

    def _written(self, row: np.ndarray) -> Json:
        scaled = np.asarray(row, dtype=np.float64) * (self.high - self.low) + self.low
        return {name: round(float(number), 6) for name, number in zip(self.names, scaled, strict=True)}


_KINDS: tuple[type[Target], ...] = (ClassTarget, DistributionTarget, NumbersTarget)


def make_target(described: dict[str, Json]) -> Target:
    """Make the target that `Target.describe` described. Raises UserError for a kind that there is not."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in described.items() if name != "kind"}
    kinds = {kind.kind: kind for kind in _KINDS}
    kind: Any = kinds.get(described["kind"])
    try:
        if kind is None and is_outside(described["kind"]):
            kind = import_outside(described["kind"], Target)
    except ValueError as error:
        raise UserError(f"a task's target cannot be read: {error}") from error
    if kind is None:
        raise UserError(f"a task's target is of the kind {described['kind']!r}; this version knows {listed(list(kinds))}")
    made: Target = kind(**fields)
    return made


def _columns(pairs: Sequence[tuple[Json, Json]]) -> tuple[list[Json], list[Json]]:
    """Return all truths and all predictions: none of each, where no clip of a part has a target."""
    return [truth for truth, _ in pairs], [predicted for _, predicted in pairs]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute probabilities over the last dimension, float64."""
    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits, axis=-1, keepdims=True)
    exponents = np.exp(shifted)
    shares: np.ndarray = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares
