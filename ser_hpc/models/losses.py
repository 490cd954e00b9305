"""Build losses of their settings: of each clip, or of all clips of an optimizer step together."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ser_hpc.config.extension_errors import check_made, explain_errors
from ser_hpc.config.losses import (
    ConcordanceSettings,
    CrossEntropySettings,
    DivergenceSettings,
    FocalSettings,
    LossSettings,
    SquaredErrorSettings,
)

Loss = Callable[..., Tensor]


def build_loss(settings: LossSettings) -> Loss:
    """Build a loss: of outputs (B, width) float32 and targets each clip's, (B,); with `over_step` of weights (B,) too, ()."""
    match settings:
        case CrossEntropySettings():
            return partial(F.cross_entropy, reduction="none", label_smoothing=settings.label_smoothing)
        case FocalSettings():
            return Focal(settings.gamma)
        case DivergenceSettings():
            return divergence
        case ConcordanceSettings():
            return concordance_loss
        case SquaredErrorSettings():
            return squared_error
    with explain_errors(settings.kind):
        loss = settings.build()
        wanted = ("outputs", "targets", "weights") if settings.over_step else ("outputs", "targets")
        fits = callable(loss) and _takes(loss, len(wanted))
        check_made(f"{settings.kind}.build", loss, fits, f"a function of {', '.join(wanted)}")
        return loss


def _takes(function: Callable[..., Any], arguments: int) -> bool:
    """Tell whether a function can be called with so many arguments, as far as it says."""
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # it does not say
        return True
    return True


class Focal:
    """Cross-entropy of each clip times (1 - p) ** gamma, p being the probability of its class (Lin et al. 2017, eq. 4)."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p = outputs.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
        return -((-torch.expm1(log_p)).clamp(min=1e-12) ** self.gamma) * log_p


def divergence(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the KL divergence of each clip's predicted distribution (logits) from its target's shares, (B,)."""
    return F.kl_div(outputs.log_softmax(dim=1), targets, reduction="none").sum(dim=1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the squared error of each clip, the mean over its numbers, (B,)."""
    return (outputs - targets).square().mean(dim=1)


def concordance_loss(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Compute 1 - concordance correlation (Lin 1989) over clips (n, K), weighted (n,), the mean over the numbers: ().

    Of a step where nothing varies it is 1, with a gradient of the squared error's kind: the denominator is never 0.
    """
    share = (weights / weights.sum())[:, None]
    outputs, targets = outputs.double(), targets.double()
    mean_x, mean_y = (share * outputs).sum(0), (share * targets).sum(0)
    x, y = outputs - mean_x, targets - mean_y
    spread = (share * (x.square() + y.square())).sum(0) + (mean_x - mean_y).square()
    return (1 - 2 * (share * x * y).sum(0) / (spread + 1e-8)).mean()
