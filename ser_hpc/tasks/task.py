"""Make a run's tasks of its settings and the columns of its clips: each with the target and the weight of every clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ser_hpc.config.extension_errors import check_made, explain_errors
from ser_hpc.config.extensions import is_outside
from ser_hpc.config.heads import HeadSettings
from ser_hpc.config.losses import DEFAULTS, CrossEntropySettings, LossSettings
from ser_hpc.config.tasks import (
    MAIN,
    ClassificationSettings,
    DistributionSettings,
    NumbersSettings,
    TaskSettings,
)
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.labels import DROPPED, LabelSet
from ser_hpc.tasks.targets import ClassTarget, DistributionTarget, NumbersTarget, Target


class Columns(Protocol):
    """The clips' annotations: each column has one row a clip of the index."""

    def texts(self, name: str) -> np.ndarray:
        """Return a text column, or a field of the extra annotations ("" where a clip lacks it), object (num_clips,)."""

    def numbers(self, name: str) -> np.ndarray:
        """Return a number column, or such a field, float64 (num_clips,), nan where a clip lacks it. Raises UserError."""

    @property
    def label_set(self) -> LabelSet:
        """Return the run's label set: what `data.labels` names."""

    @property
    def targets(self) -> np.ndarray:
        """Return the class of every clip by the label set, int64 (num_clips,), -1 where it has none."""


@dataclass(frozen=True, eq=False)
class Task:
    """A task of a run: its name, `target`, and the target of every clip of the index, `values`, (num_clips, ...).

    `weight`: its share of the loss; `balanced`: of its classes each weighs as much; `head`: settings of one of its own kind;
    `reversal`: of an adversary, how many times its gradient is taken from what is below its head.
    """

    name: str
    target: Target
    values: np.ndarray
    loss: LossSettings
    weight: float = 1.0
    balanced: bool = False
    head: HeadSettings | None = None
    reversal: float = 0.0

    @classmethod
    def of_classes(cls, classes: Sequence[str], values: np.ndarray) -> Task:
        """Make the main task as it is by default, of class indices (num_clips,)."""
        return cls(MAIN, ClassTarget(tuple(classes)), values, CrossEntropySettings())

    def in_fold(self, train: np.ndarray) -> Task:
        """Return the task as a fold has it, `train` being the positions of its training part: a class that an adversary never
        hears there, as the speakers of dev and test, is no target."""
        if not self.reversal or not isinstance(self.target, ClassTarget):
            return self
        return replace(self, values=np.where(np.isin(self.values, self.values[train]), self.values, DROPPED))

    def clip_weights(self, train: np.ndarray) -> np.ndarray:
        """Weigh every clip of the index, float32: 0 where it has no target; `balanced`: all clips / (classes x clips of the
        class), counted over those at `train` (positions)."""
        given = self.target.is_given(self.values)
        if not self.balanced:
            return given.astype(np.float32)
        counted = self.values[train][given[train]]
        counts = np.bincount(counted, minlength=self.target.width)
        weights = (len(counted) / (self.target.width * np.maximum(counts, 1))).astype(np.float32)[self.values]
        return np.where(given, weights, np.float32(0))


@dataclass(frozen=True, slots=True)
class ClipTargets:
    """What every clip of the index teaches, by task: `values` (num_clips, ...), 0 where it has no target; `weights`, float32
    (num_clips,), 0 there."""

    values: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]

    @classmethod
    def of_tasks(cls, tasks: Sequence[Task], train: np.ndarray) -> ClipTargets:
        """Make them of tasks; `train`: positions of the training part, over which classes are balanced."""
        values = {task.name: _filled(task.target.is_given(task.values), task.values) for task in tasks}
        return cls(values, {task.name: task.clip_weights(train) for task in tasks})

    @classmethod
    def of_main(cls, targets: np.ndarray, weights: np.ndarray) -> ClipTargets:
        """Make those of the main task alone, of class indices and weights (num_clips,)."""
        return cls({MAIN: targets}, {MAIN: weights})


def _filled(given: np.ndarray, values: np.ndarray) -> np.ndarray:
    if given.all():  # no copy, which of 10^7 clips is 80 MB
        return values
    filled: np.ndarray = np.where(given.reshape(-1, *[1] * (values.ndim - 1)), values, values.dtype.type(0))
    return filled


def build_tasks(settings: Mapping[str, TaskSettings], columns: Columns, class_weights: str) -> tuple[Task, ...]:
    """Make the tasks of `settings`, the main one first. `class_weights`: of the main one.

    Raises UserError naming the task and what the clips lack.
    """
    return tuple(replace(_build(name, task, columns, class_weights), reversal=task.reversal) for name, task in settings.items())


def check_selection(tasks: Sequence[Task], select_by: str) -> None:
    """Raise UserError where `train.select_by` names no score of a task, or one of which less is better."""
    name, _, score = select_by.partition(".")
    task = next(task for task in tasks if task.name == name)
    first = np.flatnonzero(task.target.is_given(task.values))[:1]
    scores = task.target.scores(task.values[first], np.zeros((1, task.target.width), np.float32))
    known = [each for each in scores if not each.startswith("rmse")]  # an error: the highest would be chosen
    if (score or task.target.best) not in known:
        raise UserError(f"train.select_by={select_by}: higher is better of these scores of {name}: {listed(known, 20)}")


def _build(name: str, settings: TaskSettings, columns: Columns, class_weights: str) -> Task:
    if is_outside(settings.kind):
        with explain_errors(settings.kind):
            made: Task = settings.build(name, columns)
            _check_task(made, name, settings.kind, len(columns.targets))
        return made
    balanced = False
    match settings:
        case ClassificationSettings():
            balanced = settings.class_weights == "balanced"
            target, values = _classes(name, settings, columns)
        case DistributionSettings():
            target, values = _votes(name, settings, columns)
        case NumbersSettings():
            target, values = _numbers(name, settings, columns)
        case _:
            balanced = class_weights == "balanced"
            target, values = ClassTarget(columns.label_set.classes), columns.targets
    if not target.is_given(values).any():
        raise UserError(f"tasks.{name}: no clip has a target")
    return Task(name, target, values, settings.chosen_loss, settings.weight, balanced, settings.head)


def _check_task(made: Task, name: str, reference: str, num_clips: int) -> None:
    """Raise UserError where a task from outside is none that can be learnt."""
    check_made(f"{reference}.build", made, isinstance(made, Task), "a Task")
    target, values = made.target, made.values
    if made.name != name:
        raise UserError(f"{reference}: its Task is named {made.name!r}; name it as `build` is told, {name!r}")
    check_made(f"{reference}: its Task's target", target, isinstance(target, Target), "a Target, such as ClassTarget(classes)")
    of_clips = isinstance(values, np.ndarray) and len(values) == num_clips
    check_made(f"{reference}: its Task's values", values, of_clips, f"an array with a row for each of {num_clips} clips")
    if isinstance(target, ClassTarget):
        fits = values.shape == (num_clips,) and values.dtype == np.int64 and -1 <= values.min() <= values.max() < target.width
        wanted = f"int64 ({num_clips},), class indices below {target.width}, -1 where a clip has none"
        check_made(f"{reference}: its Task's values", values, bool(fits), wanted)
    elif isinstance(target, DistributionTarget | NumbersTarget):
        fits = values.shape == (num_clips, target.width) and values.dtype == np.float32
        check_made(f"{reference}: its Task's values", values, fits, f"float32 ({num_clips}, {target.width})")
    if not target.is_given(values).any():
        raise UserError(f"tasks.{name}: no clip has a target")
    if target.kind in DEFAULTS and target.kind not in made.loss.targets:
        raise UserError(
            f"tasks.{name}: loss {made.loss.kind} does not learn from a {target.kind} target; let {reference} say so by a "
            f"property `target`, or give its Task a loss such as {DEFAULTS[target.kind].kind}"
        )


def _classes(name: str, settings: ClassificationSettings, columns: Columns) -> tuple[Target, np.ndarray]:
    texts = columns.texts(settings.column)
    occurring = sorted({text for text in texts.tolist() if text})
    classes = settings.classes or tuple(occurring)
    if len(classes) < 2:
        found = listed(classes) or "nothing"
        raise UserError(f"tasks.{name}: column {settings.column!r} names {found}; two classes are needed")
    if absent := [each for each in classes if each not in occurring]:
        raise UserError(
            f"tasks.{name}.classes: no clip's {settings.column} is {listed(absent)}; there are {listed(occurring, 20)}"
        )
    index = {each: i for i, each in enumerate(classes)}
    return ClassTarget(classes), np.array([index.get(text, DROPPED) for text in texts.tolist()], dtype=np.int64)


def _votes(name: str, settings: DistributionSettings, columns: Columns) -> tuple[Target, np.ndarray]:
    """Read `angry=3 neutral=1`: shares of the label set's classes."""
    label_set = columns.label_set
    class_of = {each: each for each in label_set.classes} | label_set.mapping
    index = {each: i for i, each in enumerate(label_set.classes)}
    texts = columns.texts(settings.column)
    shares: dict[str, np.ndarray] = {}
    for text in set(texts.tolist()):
        votes = np.zeros(len(label_set.classes))
        for vote in text.split():
            word, equals, count = vote.partition("=")
            if not equals or word not in class_of or not count.replace(".", "", 1).isdigit():
                raise UserError(
                    f"tasks.{name}: {settings.column} {text!r} is no list of votes as angry=3 neutral=1, with words of the "
                    f"label set {label_set.name!r}: {listed(sorted(class_of), 20)}"
                )
            if (meant := class_of[word]) is not None:
                votes[index[meant]] += float(count)
        shares[text] = votes / votes.sum() if votes.sum() else np.full(len(votes), np.nan)
    values = np.stack([shares[text] for text in texts.tolist()]).astype(np.float32)
    return DistributionTarget(label_set.classes), values


def _numbers(name: str, settings: NumbersSettings, columns: Columns) -> tuple[Target, np.ndarray]:
    low, high = settings.range
    numbers = np.stack([columns.numbers(column) for column in settings.columns], axis=1)
    given = numbers[np.isfinite(numbers).all(axis=1)]
    if len(given) and not (low <= given.min() and given.max() <= high):
        raise UserError(
            f"tasks.{name}.range is {low:g} to {high:g}, but the clips have {given.min():g} to {given.max():g}: give the scale "
            "on which they were annotated"
        )
    values = ((numbers - low) / (high - low)).astype(np.float32)
    return NumbersTarget(tuple(settings.columns), float(low), float(high)), values
