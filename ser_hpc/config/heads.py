"""Define the settings of heads, which turn a clip's frames into a task's outputs, and of the poolings that they use.

From outside the package: derive from `HeadSettings` (or `PoolingSettings`), add settings, and write `build`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ser_hpc.config.choice import Choice
from ser_hpc.config.section import Positive, PositiveFloat, Probability, Section


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


class AttentiveStatisticsPooling(PoolingSettings):
    """Weighted mean and weighted standard deviation over a clip's real frames, one after the other, by the weights of
    `attention` (Okabe et al. 2018, doi 10.21437/Interspeech.2018-993)."""

    kind: Literal["attentive_statistics"] = "attentive_statistics"
    hidden: Positive = 128
    """Width of the scoring network."""


_POOLINGS = (MeanPooling, MeanStdPooling, AttentionPooling, AttentiveStatisticsPooling)
Pooling = Annotated[PoolingSettings, Choice(PoolingSettings, *_POOLINGS)]


class HeadSettings(Section):
    """What turns a clip's frames into a task's outputs."""

    kind: str = ""

    def build(self, width: int, outputs: int) -> Any:
        """Make a module that takes packed frames (T, width) and each clip's number of them, (B,) int64 on the CPU, and returns
        (B, outputs) in float32 or better (`ser_hpc.models.heads.mean_pool.WideLinear` does)."""
        raise NotImplementedError


class MeanPoolSettings(HeadSettings):
    """The default: projection, mean over a clip's real frames, linear classifier (as transformers classifies)."""

    kind: Literal["mean_pool"] = "mean_pool"
    projection: Positive = 256
    """Width of the projection."""
    dropout: Probability = 0.0
    """Dropout before the projection."""


class MlpSettings(HeadSettings):
    """A pooling (`pooling`), hidden layers with normalisation, ReLU and dropout, linear classifier. Under a frozen encoder it
    runs in every epoch, but for the pooling `mean`."""

    kind: Literal["mlp"] = "mlp"
    pooling: Pooling = MeanPooling()
    hidden: Annotated[tuple[Positive, ...], Field(max_length=8)] = (256,)
    """Widths of the hidden layers."""
    norm: Literal["none", "layer", "batch"] = "none"
    """Normalisation of each hidden layer, before its ReLU. `batch` takes its statistics, in training, over groups of clips;
    evaluation is clip by clip."""
    norm_group: Annotated[int, Field(ge=2)] = 32
    """Clips of such a group, at most: a step, in its order, is divided into as few groups as that allows, as equal as can be.
    A group is one micro-batch: ranks, accumulation and budget never divide it. So it must fit on a GPU, and ranks beyond a
    step's groups are idle."""
    dropout: Probability = 0.0
    """Dropout after each hidden layer."""


def norm_group_of(head: HeadSettings) -> int | None:
    """Return how many clips a head's batch normalisation takes its statistics over; None: it has none."""
    return head.norm_group if isinstance(head, MlpSettings) and head.norm == "batch" and head.hidden else None


def _tuple_of_numbers(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


class ProbeSettings(HeadSettings):
    """A linear probe of a frozen encoder (model.freeze=encoder): logistic regression on what each clip's frames are on average,
    standardised on the training part. It is fitted to the end, so epochs, learning rate, batches, averaging and seeds mean
    nothing to it; train.class_weights does. Every seed gives the same: one is enough."""

    kind: Literal["probe"] = "probe"
    layers: Literal["all", "last"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = "all"
    """Layers whose frames are averaged, side by side: `all`, `last`, or a list of numbers: 0 is what enters the first layer, 1
    what leaves it."""
    statistics: Literal["mean", "mean_std"] = "mean"
    """Of each layer's frames the `mean`, or the mean and the standard deviation (`mean_std`)."""
    normalization: Literal["none", "clip", "train_speakers", "transductive"] = "none"
    """Of these numbers, before they are standardised on the training part. `clip`: those of one layer to mean 0 and deviation 1
    over the clip's own. `train_speakers`: each training speaker's clips to the mean and deviation of the average training
    speaker; other clips stay. `transductive`: dev and test speakers' too, each by all of its clips in its part, without their
    labels; so the scores are of speakers of whom many clips were heard, and what predicts single clips falls behind them."""
    l2: Annotated[tuple[PositiveFloat, ...], BeforeValidator(_tuple_of_numbers), Field(min_length=1)] = (
        *(10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01),
    )
    """L2 penalties to try, relative to the mean loss of a clip; the dev part's UAR chooses one."""


_HEADS = (MeanPoolSettings, MlpSettings)
Head = Annotated[HeadSettings, Choice(HeadSettings, *_HEADS, ProbeSettings)]
NetworkHead = Annotated[HeadSettings, Choice(HeadSettings, *reversed(_HEADS))]  # of networks that are trained from nothing
TaskHead = Annotated[HeadSettings | None, Choice(HeadSettings, *_HEADS, optional=True)]
