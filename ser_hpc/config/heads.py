"""Define the settings of heads, which turn a clip's frames into a task's outputs, and of the poolings that they use.

From outside the package: derive from `HeadSettings` (or `PoolingSettings`), add settings, and write `build`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ser_hpc.config.choice import Choice
from ser_hpc.config.section import Positive, Probability, Section


class PoolingSettings(Section):
    """How a clip's frames become one vector."""

    kind: str = ""

    def build(self, width: int) -> Any:
        """Make a module that has `out_width` and takes packed frames (T, width) and each clip's number of them, (B,) int64 on
        the CPU: `ser_hpc.models.packed.Packing` sums and averages over clips. Returns (B, out_width)."""
        raise NotImplementedError


class MeanPooling(PoolingSettings):
    """The mean over a clip's real frames."""

    kind: Literal["mean"] = "mean"


class MeanStdPooling(PoolingSettings):
    """Mean and standard deviation over a clip's real frames, one after the other."""

    kind: Literal["mean_std"] = "mean_std"


class AttentionPooling(PoolingSettings):
    """A weighted mean over a clip's real frames; each frame's weight is a softmax over the clip of a small network's score."""

    kind: Literal["attention"] = "attention"
    hidden: Positive = 128
    """Width of the scoring network."""


Pooling = Annotated[PoolingSettings, Choice(PoolingSettings, MeanPooling, MeanStdPooling, AttentionPooling)]


class HeadSettings(Section):
    """What turns a clip's frames into a task's outputs."""

    kind: str = ""

    def build(self, width: int, outputs: int) -> Any:
        """Make a module that takes packed frames (T, width) and each clip's number of them, (B,) int64 on the CPU, and returns
        (B, outputs) in float32 or better (`ser_hpc.models.heads.mean_pool.WideLinear` does)."""
        raise NotImplementedError


class MeanPoolSettings(HeadSettings):
    """Projection, mean over a clip's real frames, linear classifier (as transformers classifies)."""

    kind: Literal["mean_pool"] = "mean_pool"
    projection: Positive = 256
    """Width of the projection."""
    dropout: Probability = 0.0
    """Dropout before the projection."""


class MlpSettings(HeadSettings):
    """A pooling, hidden layers with ReLU and dropout, linear classifier."""

    kind: Literal["mlp"] = "mlp"
    pooling: Pooling = MeanPooling()
    hidden: Annotated[tuple[Positive, ...], Field(max_length=8)] = (256,)
    """Widths of the hidden layers."""
    dropout: Probability = 0.0
    """Dropout after each hidden layer."""


_HEADS = (MeanPoolSettings, MlpSettings)
Head = Annotated[HeadSettings, Choice(HeadSettings, *_HEADS)]
TaskHead = Annotated[HeadSettings | None, Choice(HeadSettings, *_HEADS, optional=True)]
