"""Build the strategy that the settings name, behind the interface of `strategy.Strategy`."""

from __future__ import annotations

from importlib.util import find_spec

from torch import nn

from ser_hpc.config.settings import TrainSettings
from ser_hpc.core.errors import UserError, shared_by_all_trials
from ser_hpc.engine.distributed.ddp import DTYPES, DdpStrategy
from ser_hpc.engine.distributed.strategy import Strategy, TrainTensors
from ser_hpc.engine.distributed.world import World


@shared_by_all_trials()
def build_strategy(module: nn.Module, settings: TrainSettings, world: World, saved: TrainTensors | None) -> Strategy:
    """Take over `module` (on the CPU, with its saved weights if there are some), going on from `saved` if it is given.

    Raises UserError for ZeRO where DeepSpeed is not installed, and for zero3 of an encoder called once for each length.
    """
    assert settings.precision in DTYPES, "the precision is settled"
    module.to(world.device)
    if settings.strategy == "ddp":
        return DdpStrategy(module, settings, world, saved)
    if settings.strategy == "zero3" and getattr(getattr(module, "frontend", None), "calls_vary", False):
        raise UserError(
            "train.strategy=zero3 gathers weights for each call of the encoder, on all ranks together, and this encoder takes "
            "a call for each length of clips: use zero2, zero1 or ddp"
        )
    if find_spec("deepspeed") is None:
        raise UserError(f"train.strategy={settings.strategy} needs DeepSpeed, which is not installed: install it, or use ddp")
    from ser_hpc.engine.distributed.zero import ZeroStrategy  # deepspeed takes seconds to import

    return ZeroStrategy(module, settings, world, saved)
