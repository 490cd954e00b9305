"""Describe a trained model without its weights: the settings of its parts, its tasks, and the trials that it is made of.

As JSON it is what an exported folder says beside its weights. What is read there is data: a kind from outside the package,
which would be code to import, or weights to load from elsewhere, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ser_hpc.config.extensions import is_outside
from ser_hpc.config.heads import HeadSettings, TaskHead
from ser_hpc.config.losses import CrossEntropySettings
from ser_hpc.config.settings import EncoderModel, Model, ModelSettings
from ser_hpc.core.errors import UserError, listed
from ser_hpc.tasks.targets import OverClasses, Target, make_target
from ser_hpc.tasks.task import Task

T = TypeVar("T")
FORMAT = 1
_MODEL: TypeAdapter[ModelSettings] = TypeAdapter(Model)
_HEAD: TypeAdapter[HeadSettings | None] = TypeAdapter(TaskHead)
_MOST, _MOST_ACRNN = 1 << 20, 1 << 12  # what a number in a folder's model may be
_MOST_MEMBERS = 1024


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a task's temperature did on the dev part that it was fitted to. `ece`: expected calibration error."""

    temperature: float
    ece_before: float
    ece_after: float
    num_clips: int


@dataclass(frozen=True, slots=True)
class Member:
    """A trial that the model is made of. `calibration`: of each of its tasks that is one of several classes."""

    seed: int
    fold: int
    dev_uar: float
    calibration: dict[str, Calibration]

    @property
    def temperatures(self) -> dict[str, float]:
        """Return each calibrated task's temperature."""
        return {task: of_task.temperature for task, of_task in self.calibration.items()}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What makes a model again: the settings of its encoder and heads, `targets` by task, the main one first, and of a task
    with a head of its own kind its settings. `max_seconds`, `crop`: longer clips are cut to it, from their `start` or around
    their `center`, as they were in training."""

    model: ModelSettings
    targets: dict[str, Target]
    heads: dict[str, HeadSettings | None]
    max_seconds: float | None
    members: tuple[Member, ...]
    crop: str = "start"

    @property
    def main(self) -> str:
        """Return the main task's name."""
        return next(iter(self.targets))

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes of the main task."""
        target = self.targets[self.main]
        assert isinstance(target, OverClasses)
        return target.classes

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Return its tasks as models are built of them: without clips."""
        nothing = np.zeros(0, np.int64)
        return tuple(
            Task(name, target, nothing, CrossEntropySettings(), head=self.heads.get(name))
            for name, target in self.targets.items()
        )

    def with_members(self, *members: Member) -> ModelSpec:
        """Return the same model, made of these trials."""
        return replace(self, members=members)

    def outsiders(self) -> list[str]:
        """Return every part of it that is code from outside the package, as `module:Class`."""
        return sorted({text for text in _leaves(self.as_json(), str) if is_outside(text)})

    def as_json(self) -> dict[str, Any]:
        """Return it as strict JSON."""
        return {
            "format": FORMAT,
            "model": self.model.model_dump(mode="json"),
            "tasks": {
                name: {"target": target.describe(), "head": head.model_dump(mode="json") if head else None}
                for (name, target), head in zip(self.targets.items(), (self.heads.get(n) for n in self.targets), strict=True)
            },
            "max_seconds": self.max_seconds,
            "members": [asdict(member) for member in self.members],
        } | ({"crop": self.crop} if self.crop != "start" else {})

    @classmethod
    def from_json(cls, record: Any, source: str) -> ModelSpec:
        """Read what `as_json` wrote, wherever it comes from. Raises UserError: it is damaged, or asks for code or files."""
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            found = record.get("format") if isinstance(record, Mapping) else record
            raise UserError(f"{source}: its model is written in format {found!r}; this version reads format {FORMAT}")
        if outside := sorted({text for text in _leaves(record, str) if is_outside(text)}):
            raise UserError(
                f"{source} asks for code from outside the package, {listed(outside)}: a model folder holds none, and none is "
                "imported for it. Predict from the run that it was made of"
            )
        try:
            spec = cls(
                model=_MODEL.validate_python(record["model"]),
                targets={str(name): make_target(task["target"]) for name, task in record["tasks"].items()},
                heads={str(name): _HEAD.validate_python(task["head"]) for name, task in record["tasks"].items()},
                max_seconds=None if record["max_seconds"] is None else float(record["max_seconds"]),
                members=tuple(_member(member) for member in record["members"]),
                crop=_crop(record.get("crop", "start")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{source} is damaged: its model cannot be read ({type(error).__name__}: {reason})") from error
        spec._check(source)
        return spec

    def _check(self, source: str) -> None:
        if isinstance(self.model, EncoderModel) and (elsewhere := self.model.weights or self.model.init_from) is not None:
            raise UserError(f"{source} would load weights from elsewhere, {elsewhere}: a model folder holds its own")
        if not self.targets or not isinstance(self.targets[self.main], OverClasses):
            raise UserError(f"{source} is damaged: its first task has no classes")
        if not 1 <= len(self.members) <= _MOST_MEMBERS:
            raise UserError(f"{source} is damaged: it is made of {len(self.members)} models")
        most = _MOST if isinstance(self.model, EncoderModel) else _MOST_ACRNN
        if too_large := [number for number in _leaves(self.model.model_dump(mode="json"), int) if number > most]:
            raise UserError(f"{source} is damaged: its model has a part of size {max(too_large):,}")
        if any(not 0 < t < float("inf") for member in self.members for t in member.temperatures.values()):
            raise UserError(f"{source} is damaged: a temperature is not a positive number")


def _crop(name: Any) -> str:
    if name not in ("start", "center"):
        raise ValueError(f"there is no crop {name!r}")
    return str(name)


def _member(record: Mapping[str, Any]) -> Member:
    calibration = {str(task): Calibration(**of_task) for task, of_task in record["calibration"].items()}
    return Member(int(record["seed"]), int(record["fold"]), float(record["dev_uar"]), calibration)


def _leaves(tree: Any, kind: type[T]) -> Iterator[T]:
    """Yield the values of a kind in JSON, at any depth."""
    if isinstance(tree, kind):
        yield tree
    elif isinstance(tree, Mapping | list | tuple):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _leaves(value, kind)
