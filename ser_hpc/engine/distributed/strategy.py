"""Define how ranks share a training step: the interface that the loop sees, and the state that strategies take and give.

State goes by parameter name, in full and in fp32, so a trial may go on under another strategy or another number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

LOSS_SCALE_WINDOW = 2000  # good steps, after which it doubles; an overflow halves it at once (as torch's GradScaler has it)


@dataclass(frozen=True, slots=True)
class TrainTensors:
    """Every tensor of a trial's state, in full, fp32, on the CPU, by parameter name. `updates`: AdamW's own step count, but for
    parameters that were released later, whose own is in `late_updates`; those without moments have none yet.

    `loss_scale` (of fp16) has done well for `good_steps`. `ema`: the moving average of the weights, where one is kept.
    Where most is frozen, `model` is what is trained, over a base of the fingerprint `base`.
    """

    model: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    updates: int
    loss_scale: float = 1.0
    good_steps: int = 0
    ema: dict[str, Tensor] = field(default_factory=dict)
    base: str = ""
    late_updates: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def split_updates(counts: Mapping[str, int]) -> tuple[int, dict[str, int]]:
        """Return `updates` and `late_updates` of the counts of all parameters."""
        updates = max(counts.values(), default=0)
        return updates, {name: count for name, count in counts.items() if count != updates}

    def updates_of(self, name: str) -> int:
        """Return how often a parameter was updated."""
        return self.late_updates.get(name, self.updates if name in self.exp_avg else 0)


class Strategy(Protocol):
    """A way to share a training step over ranks; every rank calls its methods alike."""

    @property
    def module(self) -> nn.Module:
        """Return the model as it is trained; its parameters are whole but under ZeRO 3."""

    def forward(self, samples: Tensor, offsets: Tensor, *, last: bool = False) -> dict[str, Tensor]:
        """Run the model on one micro-batch. `last` of the step: the backward pass that follows reduces gradients over ranks."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this rank's share of the step's loss. All ranks call it equally often."""

    def join_pending_collectives(self) -> None:
        """Do this rank's part of the exchanges that others wait in, when its memory ran out in the middle of a step.

        Raises UserError where the strategy has no way to.
        """

    def discard_step(self) -> None:
        """Clear, on all ranks after that, the step's gradients, so that it can be made again."""

    def step(self, lr: float) -> Tensor:
        """Clip, update, clear. Returns the gradient's norm before clipping, over all parameters of the step, on its device."""

    def train_mode(self, mode: bool) -> None:
        """Turn dropout on or off. Buffers (BatchNorm's running statistics) become rank 0's; all ranks must call it."""

    def tensors(self) -> TrainTensors | None:
        """Return the full state on rank 0, None elsewhere. All ranks must call it."""

    def weights(self) -> dict[str, Tensor] | None:
        """Return the full weights on rank 0, None elsewhere. All ranks must call it."""

    def close(self) -> None:
        """Free what it holds; nothing else may be called afterwards."""
