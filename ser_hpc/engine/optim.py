"""Make the optimizer with decay on matrices only, and the learning rate as a pure function of step and layer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ser_hpc.config.settings import TrainSettings

_LAYER = re.compile(r"^encoder\.(?:encoder\.){0,2}layers?\.(\d+)\.")  # nested once more in some families; `layer` in SEW-D


def build_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Make it; biases, gains and other vectors are not decayed (Loshchilov & Hutter 2019).

    `lr_scale` of a group of parameters: its learning rate relative to the step's.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    scales = _scales(module, settings)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scales[name], decay), []).append(parameter)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(
        [
            {"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (scale, decay), parameters in sorted(groups.items(), key=lambda group: (-group[0][0], -group[0][1]))
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
    layers = {name: int(found[1]) for name, _ in module.named_parameters() if (found := _LAYER.match(name))}
    top, scales = max(layers.values(), default=-1), {}
    above = _above(module) if layers and settings.layer_decay != 1 else ()
    for name, _ in module.named_parameters():
        if not name.startswith("encoder."):
            scales[name] = (settings.head_lr or settings.lr) / settings.lr
        else:
            layer = layers.get(name, top if name.startswith(above) else -1)
            scales[name] = settings.layer_decay ** (top - layer)
    return scales


def _above(module: nn.Module) -> tuple[str, ...]:
    """Return how the names of what comes after an encoder's layers start: it belongs to the highest."""
    from ser_hpc.models.encoders.configuration import norms_last  # transformers, which other models do not need

    encoder: Any = module.encoder
    if encoder.config.model_type == "whisper":
        return ("encoder.layer_norm.",)
    return ("encoder.encoder.upsample.", *(("encoder.encoder.layer_norm.",) if norms_last(encoder.config) else ()))
