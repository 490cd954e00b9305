"""Define the settings of losses: how far a task's outputs are from its targets, clip by clip, or over a whole step.

From outside the package: derive from `LossSettings`, add settings, and write `build`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ser_hpc.config.choice import Choice
from ser_hpc.config.section import Probability, Section


class LossSettings(Section):
    """A loss. `targets`: the kinds of target that it can learn from; `over_step`: it is of a whole step's clips together."""

    kind: str = ""
    targets: ClassVar[tuple[str, ...]] = ("class", "distribution", "numbers")
    over_step: ClassVar[bool] = False

    def build(self) -> Callable[..., Any]:
        """Make the loss: of outputs (B, width) float32 and targets ((B,) int64 class indices; (B, width) float32 shares or
        numbers) each clip's, (B,). With `over_step` also of weights (B,): of all clips of a step, one number, ()."""
        raise NotImplementedError


class CrossEntropySettings(LossSettings):
    """Cross-entropy."""

    targets: ClassVar[tuple[str, ...]] = ("class",)
    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Probability = 0.0
    """This part of the target is shared out evenly over all classes (Szegedy et al. 2016)."""


class FocalSettings(LossSettings):
    """Cross-entropy that counts clips less the surer the model is of them (Lin et al. 2017)."""

    targets: ClassVar[tuple[str, ...]] = ("class",)
    kind: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0)] = 2.0
    """A clip counts (1 - p) ** gamma, p being the probability of its true class; 0: cross-entropy."""


class DivergenceSettings(LossSettings):
    """Kullback-Leibler divergence of the predicted distribution over classes from the target's."""

    targets: ClassVar[tuple[str, ...]] = ("distribution",)
    kind: Literal["kl"] = "kl"


class ConcordanceSettings(LossSettings):
    """1 - concordance correlation (Lin 1989), the mean over a task's numbers: over all clips of an optimizer step together,
    exactly, on however many ranks and micro-batches (which takes a second forward pass)."""

    targets: ClassVar[tuple[str, ...]] = ("numbers",)
    over_step: ClassVar[bool] = True
    kind: Literal["concordance"] = "concordance"


class SquaredErrorSettings(LossSettings):
    """The squared error, the mean over a task's numbers."""

    targets: ClassVar[tuple[str, ...]] = ("numbers",)
    kind: Literal["squared_error"] = "squared_error"


LOSSES = (CrossEntropySettings, FocalSettings, DivergenceSettings, ConcordanceSettings, SquaredErrorSettings)
TaskLoss = Annotated[LossSettings | None, Choice(LossSettings, *LOSSES, optional=True)]
DEFAULTS: dict[str, LossSettings] = {
    "class": CrossEntropySettings(),
    "distribution": DivergenceSettings(),
    "numbers": ConcordanceSettings(),
}
