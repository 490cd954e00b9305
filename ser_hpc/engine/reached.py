"""Check that a trial's first backward pass reaches every parameter that is to be trained, for the training loop.

One that it does not reach stays as it was drawn or loaded, and the trial would seem to train it: an adapter under a module that
the model never calls, a part of the encoder below the layer that a head sees.
"""

from __future__ import annotations

import torch
from torch import nn

from ser_hpc.core.errors import UserError, listed
from ser_hpc.engine.distributed.world import World

_SHOWN = 8


class ReachedParameters:
    """The trained parameters of a model that got a gradient, on any rank, until `check` was called."""

    def __init__(self, module: nn.Module) -> None:
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._names, self._reached = list(trained), set[str]()
        self._hooks = [
            parameter.register_hook(lambda _, name=name: self._reached.add(name))  # type: ignore[no-untyped-call]
            for name, parameter in trained.items()
        ]

    def check(self, world: World) -> None:
        """Look once, after a step's backward passes, all ranks together. Raises UserError naming what was not reached."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        found = torch.tensor([float(name in self._reached) for name in self._names], device=world.device)
        counts = world.sum_over_ranks(found).tolist()
        if missing := [name for name, count in zip(self._names, counts, strict=True) if not count]:
            raise UserError(
                f"{len(missing)} of {len(self._names)} trained parameters get no gradient, so they would never be trained: "
                f"{listed(missing, _SHOWN)}. Freeze them (model.freeze, model.freeze_layers), or have the head use them"
            )
