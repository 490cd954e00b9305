"""Make the optimizer with decay on matrices only, and the learning rate as a pure function of step and layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ser_hpc.config.settings import TrainSettings
from ser_hpc.engine.unfreeze import release_epochs
from ser_hpc.models.layer_depth import layer_depths


def build_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Make it; biases, gains and other vectors are not decayed (Loshchilov & Hutter 2019).

    `lr_scale` of a group of parameters: its learning rate relative to the step's. Those of a group were released together, so
    they are updated equally often: ZeRO counts that by group.
    """
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    scales, epochs = _scales(module, settings), release_epochs(module, settings)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scales[name], decay, epochs[name]), []).append(parameter)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(
        [
            {"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (scale, decay, _), parameters in sorted(
                groups.items(), key=lambda group: (-group[0][0], -group[0][1], group[0][2])
            )
        ],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Give an optimizer's groups the learning rate of a step."""
    for group in groups:
        group["lr"] = lr * group["lr_scale"]


def learning_rate(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Compute that of the step with this number (from 0): linear warm-up, then the chosen decay to zero after the last step."""
    warmup = round(total_steps * settings.warmup)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    match settings.decay:
        case "linear":
            return settings.lr * (1 - progress)
        case "cosine":
            return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
        case "constant":
            return settings.lr


def _scales(module: nn.Module, settings: TrainSettings) -> dict[str, float]:
    """Return each parameter's learning rate relative to `train.lr`, by name: `train.layer_decay` per layer from the highest
    down, what lies below the layers as one more (Clark et al. 2020, ELECTRA); `train.head_lr` outside the encoder."""
    head = (settings.head_lr or settings.lr) / settings.lr
    if settings.layer_decay == 1:
        return {name: 1.0 if name.startswith("encoder.") else head for name, _ in module.named_parameters()}
    return {name: head if depth is None else settings.layer_decay**depth for name, depth in layer_depths(module).items()}
