"""Freeze the encoder for a trial's first epochs and release it later, at once or layer by layer, for the training loop.

Which epoch releases a parameter is a function of its name and the settings alone. Until then it needs no gradient: nothing is
computed, communicated or remembered for it, and nothing moves it. With a release the trial is set up anew from the checkpoint
of that moment, as after a stop, in the same process: what holds for a trial that goes on, under any strategy, holds here.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import ParamSpec

from torch import nn

from ser_hpc.config.settings import TrainSettings
from ser_hpc.models.layer_depth import layer_depths

P = ParamSpec("P")


def release_epochs(module: nn.Module, train: TrainSettings) -> dict[str, int]:
    """Return the epoch, from 0, from which on each of the model's parameters is trained, by name; of frozen ones, too.

    The encoder's after `train.freeze_epochs`; with `train.unfreeze_layers` so many layers an epoch, from the highest down
    (Howard & Ruder 2018, ULMFiT).
    """
    if train.unfreeze_layers is None:
        return {name: train.freeze_epochs * name.startswith("encoder.") for name, _ in module.named_parameters()}
    return {
        name: 0 if depth is None else train.freeze_epochs + depth // train.unfreeze_layers
        for name, depth in layer_depths(module).items()
    }


class Unfreezing:
    """What is trained in which epoch: those parameters that the model's own settings leave to be trained, once released.

    Make it of a model as those settings froze it.
    """

    def __init__(self, module: nn.Module, train: TrainSettings) -> None:
        epochs, self._epochs = release_epochs(module, train), train.epochs
        self._epoch_of = {name: epochs[name] for name, parameter in module.named_parameters() if parameter.requires_grad}

    def freeze(self, module: nn.Module, epoch: int) -> str | None:
        """Freeze what is not released in this epoch. Returns a sentence about what is trained then, unless it is all from the
        first epoch on.

        An encoder of which nothing is trained runs without dropout, as under model.freeze=encoder.
        """
        if not any(self._epoch_of.values()):
            return None
        held = {name: released for name, released in self._epoch_of.items() if released > epoch}
        for name, parameter in module.named_parameters():
            if name in held:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in module.get_submodule("encoder").parameters()):
            module.freeze_encoder = True  # type: ignore[assignment]
        trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        then = min(held.values(), default=epoch)
        rest = f"from epoch {then + 1} on" if then < self._epochs else f"never, as train.epochs={self._epochs} ends before"
        more = f"; more of the encoder {rest}" if held else ", all that is to be"
        return f"epoch {epoch + 1}: {trained:,} parameters are trained{more}"

    def releases(self, before: int, epoch: int) -> bool:
        """Tell whether more is trained in `epoch` than in the epoch `before`."""
        return any(before < released <= epoch for released in self._epoch_of.values())


def go_on_after_releases(train_trial: Callable[P, bool]) -> Callable[P, None]:
    """Have a function that trains a trial called until it returns True: False says that it ended at a release, and is to go on
    from its checkpoint."""

    @functools.wraps(train_trial)
    def whole(*args: P.args, **kwargs: P.kwargs) -> None:
        while not train_trial(*args, **kwargs):
            gc.collect()  # of the model before: modules and hooks refer to each other

    return whole
