"""Take over the weights of a trained model into a new one: its encoder, its sum of layers, and its heads where they fit.

A head's classifier is taken over class by class, by name: if each class of the new one is among the trained one's, its rows
are. Else it stays as it was drawn, under what else of the head fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.models.layer_sum import LayerSum
from ser_hpc.tasks.targets import OverClasses
from ser_hpc.tasks.task import Task

_CLASSIFIER = "classifier."
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """Trained weights, float32 on the CPU, by name. `heads`: by task; `classes`: of each task that has such, under the names
    that the new label set gives them (None: no class of it). `told` gets a line for each part that was put somewhere."""

    source: str
    encoder: Mapping[str, Tensor]
    heads: Mapping[str, Mapping[str, Tensor]]
    classes: Mapping[str, Sequence[str | None]]
    layer_sum: Mapping[str, Tensor] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def put_encoder(self, encoder: nn.Module) -> None:
        """Load the encoder's weights, before an adapter is put into it. Raises UserError where they are of another encoder."""
        own = encoder.state_dict()
        if other := [name for name in own if name in self.encoder and self.encoder[name].shape != own[name].shape]:
            theirs, ours = (tuple(of[other[0]].shape) for of in (self.encoder, own))
            raise UserError(
                f"model.init_from {self.source} is of another encoder than model.weights: {other[0]} has the shape {theirs} "
                f"there and {ours} here. Give the weights (or config) that it was trained from, or leave both out"
            )
        shared = {name: self.encoder[name] for name in own if name in self.encoder}
        if not shared:
            raise UserError(
                f"model.init_from {self.source} has none of the weights of this encoder, such as {listed(list(own), 2)}: it is "
                "of another family. Give the weights (or config) that it was trained from, or leave both out"
            )
        _load(encoder, shared)
        self._tell("encoder", len(shared), sorted(self.encoder.keys() - own.keys()), sorted(own.keys() - shared.keys()))

    def put_rest(self, layer_sum: LayerSum | None, heads: Mapping[str, nn.Module], tasks: Sequence[Task]) -> None:
        """Load what fits of the sum of layers and of the tasks' heads."""
        if layer_sum is not None:
            self._put("sum of layers", layer_sum, self.layer_sum)
        for task in tasks:
            given, note = dict(self.heads.get(task.name, {})), ""
            target: Any = task.target
            if isinstance(target, OverClasses):
                given, note = self._for_classes(task.name, given, target.classes)
            self._put(f"head of {task.name}", heads[task.name], given, note)

    def _for_classes(self, task: str, given: dict[str, Tensor], classes: Sequence[str]) -> tuple[dict[str, Tensor], str]:
        """Return a head's tensors with the classifier's rows in the order of `classes`, or without it, and a note."""
        theirs = list(self.classes.get(task, ()))
        if not given or theirs == list(classes):
            return given, ""
        rest = {name: tensor for name, tensor in given.items() if not name.startswith(_CLASSIFIER)}
        if lacking := [name for name in classes if name not in theirs]:
            return rest, f"; its classifier is new, for the source has no class {listed(lacking, _SHOWN)}"
        rows = torch.tensor([theirs.index(name) for name in classes])
        rows_of = {name: tensor[rows] for name, tensor in given.items() if name.startswith(_CLASSIFIER)}
        return rest | rows_of, f"; of its classifier the rows of {listed(list(classes), _SHOWN)}, by name"

    def _put(self, what: str, module: nn.Module, given: Mapping[str, Tensor], note: str = "") -> None:
        own = module.state_dict()
        shared = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
        _load(module, shared)
        self._tell(what, len(shared), sorted(given.keys() - shared.keys()), sorted(own.keys() - shared.keys()), note)

    def _tell(self, what: str, loaded: int, skipped: Sequence[str], new: Sequence[str], note: str = "") -> None:
        some = f" ({listed(new, _SHOWN)})" if new else ""
        left = f" ({listed(skipped, _SHOWN)})" if skipped else ""
        self.told.append(
            f"{what:<16} {counted(loaded, 'tensor')} loaded, {len(skipped)} skipped{left}, {len(new)} new{some}{note}"
        )


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    module.load_state_dict(dict(tensors), strict=False)
