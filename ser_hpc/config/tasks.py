"""Define the settings of tasks: what is learnt of a clip. `emotion` is always one of them; others are trained beside it.

    tasks:
      emotion: {weight: 1.0, loss: {kind: focal}}
      gender: {kind: classification, column: gender, weight: 0.3}
      attributes: {kind: numbers, columns: [arousal, valence, dominance], range: [1, 5]}

From outside the package: derive from `TaskSettings`, add settings, and write `build`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ser_hpc.config.choice import Choice
from ser_hpc.config.heads import TaskHead
from ser_hpc.config.losses import DEFAULTS, LOSSES, LossSettings, TaskLoss
from ser_hpc.config.section import Section, Strings

MAIN = "emotion"


class TaskSettings(Section):
    """What is learnt of a clip."""

    kind: str = ""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """The task's share of the whole loss, beside the others'; 0: it is predicted and scored, and not learnt."""
    loss: TaskLoss = None
    """None: cross-entropy for classes, KL divergence for distributions, concordance for numbers."""
    head: TaskHead = None
    """A head of another kind than `model.head`, for this task; none: one of that kind of its own."""
    reversal: Annotated[float, Field(ge=0)] = 0.0
    """Makes an adversary of it, by gradient reversal (Ganin & Lempitsky 2015): its head learns it, and so many times its
    gradient is taken from what is below, which is to unlearn it (0.1, of the speaker); 0: both learn it."""

    @property
    def target(self) -> str:
        """Return the kind of target, which a loss must fit: class, distribution or numbers."""
        return "class"

    @property
    def chosen_loss(self) -> LossSettings:
        """Return the loss, or the default one of such targets."""
        return self.loss or DEFAULTS[self.target]

    @model_validator(mode="after")
    def _fitting_loss(self) -> Self:
        if self.loss is not None and self.target not in self.loss.targets:
            fitting = [loss.model_fields["kind"].default for loss in LOSSES if self.target in loss.targets]
            raise ValueError(f"loss {self.loss.kind} does not learn from a {self.target} target; use {' or '.join(fitting)}")
        return self

    def build(self, name: str, columns: Any) -> Any:
        """Make the task from the clips' columns (`ser_hpc.tasks.task`). Raises UserError where they lack what it needs."""
        raise NotImplementedError


class EmotionSettings(TaskSettings):
    """The classes of `data.labels`: they plan the folds and head the report. Losses: cross_entropy, the default, and focal."""

    kind: Literal["emotion"] = "emotion"


class ClassificationSettings(TaskSettings):
    """Classes that a text column names. Clips whose text is empty, or no class, teach nothing here. Losses: cross_entropy, the
    default, and focal."""

    kind: Literal["classification"] = "classification"
    column: str
    """A column of the shards (gender, speaker, language, intensity ...) or a field of their extra annotations."""
    classes: Strings = ()
    """Its classes; none: all words that occur."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: a clip weighs as much as its class is rare in the training part."""


class DistributionSettings(TaskSettings):
    """A distribution over the classes of `data.labels`, from annotators' votes: a field `angry=3 neutral=1` of the extra
    annotations. Loss: kl."""

    kind: Literal["distribution"] = "distribution"
    column: str = "votes"
    """The field that holds the votes; words that the label set drops are left out."""

    @property
    def target(self) -> str:
        return "distribution"


class NumbersSettings(TaskSettings):
    """One number or several, such as arousal, valence and dominance. Clips that lack one of them teach nothing here. Losses:
    concordance, the default, and squared_error."""

    kind: Literal["numbers"] = "numbers"
    columns: Annotated[Strings, Field(min_length=1)]
    """Number columns of the shards (arousal, valence, dominance), or fields of their extra annotations."""
    range: tuple[float, float]
    """The lowest and the highest number of the scale on which they were annotated, such as [1, 5]."""

    @property
    def target(self) -> str:
        return "numbers"

    @model_validator(mode="after")
    def _scale(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns: one stands here twice")
        if not self.range[0] < self.range[1]:
            raise ValueError("range: the lowest number of the scale comes first, as in [1, 5]")
        return self


TaskChoice = Annotated[
    TaskSettings, Choice(TaskSettings, EmotionSettings, ClassificationSettings, DistributionSettings, NumbersSettings)
]


def with_emotion(value: Any) -> Any:
    """Put the main task first, where others were given alone, and give it its kind; the others go by name: the order in which
    they were written shall not draw other weights for their heads, as it names no other run."""
    if not isinstance(value, dict):
        return value
    main = value.get(MAIN, {})
    main = {"kind": "emotion"} | main if isinstance(main, dict) else main
    return {MAIN: main} | {name: value[name] for name in sorted(value, key=str) if name != MAIN}
