"""Make AdamW with decay on matrices only, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from ser_hpc.config.settings import TrainSettings


def adamw(module: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Make the optimizer; biases, gains and other vectors are not decayed (Loshchilov & Hutter 2019)."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


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
