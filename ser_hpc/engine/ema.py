"""Keep a moving average of the weights, which is what is evaluated and kept (Polyak & Juditsky 1992, doi 10.1137/0330046).

On a small corpus the score of single epochs swings widely, and choosing the best of them on dev is partly a lottery; averaged
over some epochs' steps the weights are better and change slowly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ser_hpc.engine.distributed.world import World


class WeightEma:
    """Exponential moving average of the trained parameters and of buffers (BatchNorm's statistics); `decay` 0: none is kept.

    Needs the whole parameters on every rank. In float32, whatever the module's type.
    """

    def __init__(self, module: nn.Module, decay: float, saved: Mapping[str, Tensor]) -> None:
        self._decay = decay
        trained = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
        buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
        self._live: dict[str, Tensor] = trained | buffers if decay else {}
        self._buffers = set(buffers)
        self._mean = {name: saved.get(name, live).to(live.device).float().clone() for name, live in self._live.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after a step; `steps` counts it already. Early on it is over all steps: it forgets the start."""
        if self._live:
            decay = min(self._decay, steps / (steps + 9))
            live = [self._live[name].float() for name in self._mean]
            get_ema_multi_avg_fn(decay)(list(self._mean.values()), live, steps)  # type: ignore[no-untyped-call]

    def tensors(self) -> dict[str, Tensor]:
        """Copy to the CPU, by name."""
        return {name: mean.cpu().clone() for name, mean in self._mean.items()}

    @contextmanager
    def in_place(self, world: World) -> Iterator[None]:
        """Have the module's weights be the average within it; rank 0's, where ranks have buffers of their own."""
        own = {name: live.clone() for name, live in self._live.items()}
        # In one order on every rank.
        world.broadcast_from_main(mean for name, mean in self._mean.items() if name in self._buffers)
        self._fill(self._mean)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, live in self._live.items():
            live.copy_(values[name])
