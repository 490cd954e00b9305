"""Checkpoint activations: each layer keeps its input alone and is run again in the backward pass (Chen et al. 2016,
arXiv 1604.06174). About a third more work for a fraction of the memory; the gradients are the same, bit for bit.

transformers' layers ask their own switch, and the convolutional stem (models/encoders/feature_encoder.py) asks the same one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ser_hpc.core.errors import UserError
from ser_hpc.models.classifier import Classifier


def is_possible(model: Classifier) -> bool:
    """Tell whether layers can be run again and a gradient goes through them at all."""
    return not model.freeze_encoder and bool(_switches(model))


def is_on(model: Classifier) -> bool:
    return any(module.gradient_checkpointing for module in _switches(model))


def enable(model: Classifier) -> None:
    """Turn it on, from now on, in training. Raises UserError for a model that has no such layers."""
    switches = _switches(model)
    if not switches:
        raise UserError("train.activation_checkpointing=always: this model has no layers to run again; use auto or never")
    for module in switches:
        module.gradient_checkpointing = True
        module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # keeps dropout's random state


def _switches(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
