"""The strategy that the settings name, behind the interface of `sharing.Strategy`."""

from __future__ import annotations

from torch import nn

from ser_hpc.config.settings import TrainSettings
from ser_hpc.engine.ddp import Replicated
from ser_hpc.engine.sharing import Strategy, TrainTensors
from ser_hpc.engine.world import World
from ser_hpc.errors import of_every_trial


@of_every_trial()
def build(module: nn.Module, settings: TrainSettings, world: World, saved: TrainTensors | None) -> Strategy:
    """Take over `module` (on the CPU, with its saved weights if there are some), going on from `saved` if it is given."""
    module.to(world.device)
    if settings.strategy == "ddp":
        return Replicated(module, settings, world, saved)
    from ser_hpc.engine.zero import Zero  # deepspeed takes seconds to import

    return Zero(module, settings, world, saved)
