"""Count the transformer layers between the head and each parameter of a classifier: learning rates and releases go by them."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_LAYER = re.compile(r"^encoder\.(?:encoder\.){0,2}layers?\.(\d+)\.")  # nested once more in some families; `layer` in SEW-D


def layer_depths(module: nn.Module) -> dict[str, int | None]:
    """Return each parameter's depth, by name: 0 in the highest layer and what comes after it, 1 in the one below, and what lies
    below the layers as one more; of an encoder without layers 0; None outside the encoder."""
    layers = {name: int(found[1]) for name, _ in module.named_parameters() if (found := _LAYER.match(name))}
    top = max(layers.values(), default=-1)
    above = _above(module) if layers else ()
    depths: dict[str, int | None] = {}
    for name, _ in module.named_parameters():
        layer = layers.get(name, top if name.startswith(above) else -1)
        depths[name] = top - layer if name.startswith("encoder.") else None
    return depths


def _above(module: nn.Module) -> tuple[str, ...]:
    """Return how the names of what comes after an encoder's layers start: it belongs to the highest."""
    from ser_hpc.models.encoders.configuration import norms_last  # transformers, which other models do not need

    encoder: Any = module.encoder
    if encoder.config.model_type == "whisper":
        return ("encoder.layer_norm.",)
    return ("encoder.encoder.upsample.", *(("encoder.encoder.layer_norm.",) if norms_last(encoder.config) else ()))
