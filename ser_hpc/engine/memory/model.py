"""Model the memory of training on one GPU, as a function of a micro-batch's audio: a static part, and activations.

The static part follows from the number of parameters. Activations are a straight line through measured peaks (search.py):
everything in the models grows with the number of clips of a length. Some of it, as WavLM's position biases, grows with the
square of that length, so the line is measured on the longest clips, with which a micro-batch can be filled in the worst case.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ser_hpc.config.settings import TrainSettings
from ser_hpc.engine.distributed.ddp import DTYPES

REDUCE_BUCKET = 500_000_000  # elements, at most, of DeepSpeed's buffer for reducing gradients; it always has its full size
_PACKED = 1 + 2 / 64 + 8 / (64 * 256)  # bytes of a byte of four-bit weights, with their scales (models/quantised.py)


def static_bytes(module: nn.Module, train: TrainSettings, ranks: int) -> float:
    """Bound the bytes of weights, gradients, AdamW's two moments and the moving average on one rank.

    ddp: all of it, in float32. ZeRO keeps weights (and communicates) in the precision of training, float32 masters of them and
    float32 moments divided by the ranks; from stage 2 on gradients too. Stage 3 divides the weights as well, but the gathered
    ones of models below DeepSpeed's limit of 1e9 live through a whole pass.
    """
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    weight = DTYPES[train.precision].itemsize if train.strategy != "ddp" else 4
    every = sum(parameter.numel() for parameter in module.parameters() if parameter.is_floating_point())
    packed = _PACKED * sum(parameter.numel() for parameter in module.parameters() if not parameter.is_floating_point())
    ema = packed + (4 * trained if train.ema_decay else 0)
    if train.strategy == "ddp":
        return ema + weight * every + (4 + 8) * trained
    own, bucket = (4 + 8) / ranks * trained, min(REDUCE_BUCKET, trained)
    if train.strategy == "zero1":
        return ema + weight * every + (weight + 4) * trained + own + 4 * bucket
    gathered = weight * every * (1 + (1 / ranks if train.strategy == "zero3" else 0))
    return ema + gathered + 4 / ranks * trained + own + weight * bucket


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that a micro-batch takes beside the static part: `fixed_bytes`, and `bytes_per_second` for each second of
    audio."""

    fixed_bytes: float
    bytes_per_second: float

    def bytes(self, seconds: float) -> float:
        return self.fixed_bytes + seconds * self.bytes_per_second

    def seconds(self, free_bytes: float) -> float:
        """Return seconds of audio that fit into `free_bytes` bytes."""
        return max(0.0, free_bytes - self.fixed_bytes) / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class BudgetRange:
    """Seconds of audio of the smallest micro-batch that will do, and of the largest that is of use."""

    min_seconds: float
    max_seconds: float

    def budget(self, fits: float) -> float | None:
        """Round down what fits to steps of 5 s, so that a little more or less free memory does not change the cut; None if
        it is too little."""
        return None if fits < self.min_seconds else min(self.max_seconds, max(self.min_seconds, fits // 5 * 5))
