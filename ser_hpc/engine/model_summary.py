"""Show a run's model layer by layer, and the memory that it takes before any clip comes: `launch --summary`.

The model is built as trials build it, on torch's meta device: shapes without numbers, so that the largest takes seconds and no
memory. Activations are not told: how much audio fits beside this is measured when a trial starts (memory/search.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ser_hpc.config.settings import EncoderModel, ModelSettings
from ser_hpc.engine.memory.model import static_bytes
from ser_hpc.models.classifier import Classifier, build_for_tasks
from ser_hpc.models.encoders.configuration import read_configuration
from ser_hpc.run.experiment import Experiment

_NUMBER = re.compile(r"\.\d+$")


def print_summary(experiment: Experiment, ranks: int, out: Console) -> None:
    """Print the table and the memory of a rank. Raises UserError where the model's configuration cannot be read."""
    settings = experiment.settings
    model = build_without_numbers(experiment)
    table = Table("part", "parameters", "trained", title="The model, layer by layer", title_justify="left", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, every, trained in (*rows(model), ("all", *_count(model))):
        table.add_row(name, f"{every:,}", f"{trained:,}")
    out.print("", table, sep="\n")
    train = settings.train
    known = train if train.precision != "auto" else train.model_copy(update={"precision": "fp32"})
    needed = f"{static_bytes(model, known, ranks) / 1e6:,.0f} MB ({train.strategy}, {known.precision})"
    out.print(
        f"memory of a rank, of {ranks}, before activations: {needed}: weights, gradients, two moments"
        f"{', moving average' * bool(train.ema_decay)}. How much audio fits beside it is measured when a trial starts."
    )


def build_without_numbers(experiment: Experiment) -> Classifier:
    """Build the run's classifier on the meta device; what computes filters, the recurrent network, on the CPU."""
    settings: ModelSettings = experiment.settings.model
    if not isinstance(settings, EncoderModel):
        return build_for_tasks(settings, experiment.tasks, 0)
    if settings.weights is not None:
        config: dict[str, Any] = read_configuration(settings).to_dict()
        settings = settings.model_copy(update={"weights": None, "config": config})
    with torch.device("meta"):
        return build_for_tasks(settings, experiment.tasks, 0)


def rows(model: nn.Module) -> list[tuple[str, int, int]]:
    """List (name, parameters, trained ones) of the model's parts in order; neighbours in a stack with the same numbers are one
    row, and summed up."""
    found: list[tuple[str, int, int, int]] = []  # with how many layers
    for name, module in _parts(model):
        every, trained = _count(module)
        if not every:
            continue
        stack = _NUMBER.sub("", name)
        if found and name != stack and _NUMBER.sub("", found[-1][0]) == stack and found[-1][1:3] == (every, trained):
            found[-1] = (*found[-1][:3], found[-1][3] + 1)
        else:
            found.append((name, every, trained, 1))
    return [
        (name if many == 1 else f"{name} and {many - 1} more like it", many * every, many * trained)
        for name, every, trained, many in found
    ]


def _parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's parts down to the layers of its stacks."""
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        stacked = any(isinstance(part, nn.ModuleList | nn.ModuleDict) for part in child.modules())
        whole = _NUMBER.search(path) or next(child.parameters(recurse=False), None) is not None
        if stacked and not whole:
            yield from _parts(child, f"{path}.")
        else:
            yield path, child


def _count(module: nn.Module) -> tuple[int, int]:
    """Count parameters, and trained ones; a byte of four-bit weights (models/quantised.py) holds two."""
    every = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in module.parameters())
    return every, sum(p.numel() for p in module.parameters() if p.requires_grad)
