"""Compile a model with torch.compile, region by region, for the training loop: every transformer layer without its attention.

Layers share their compiled code, so compiling costs as much for two as for 24; lengths are dynamic, so a new batch does not
compile anew. Attention stays as it is: a kernel for variable lengths, or one call for each group of clips. So does the stem:
it takes minutes to compile and is then slower (five times, on a CPU).
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ser_hpc.core.errors import UserError


def compile_layers(encoder: Any) -> None:
    """Have each layer compiled when it first runs. Raises UserError where nothing can be compiled."""
    if (lacking := missing_for_compile()) is not None:
        raise UserError(f"train.compile needs {lacking} on the compute node; or set it to false")
    if isinstance(encoder, nn.Identity):  # its features are cached
        return
    from ser_hpc.models.encoders.configuration import PACKED  # transformers, which not every encoder needs

    if encoder.config.model_type not in PACKED:
        raise UserError(
            f"train.compile compiles the layers of {', '.join(PACKED)}, not of {encoder.config.model_type}: set it to false"
        )
    whisper = hasattr(encoder, "conv1")
    for layer in encoder.layers if whisper else encoder.encoder.layers:
        attention = layer.self_attn if whisper else layer.attention
        attention.__class__ = _not_compiled(attention.__class__)
        layer.compile(dynamic=True)


def missing_for_compile() -> str | None:
    """Name what compiling lacks here: torch writes C++ that includes Python's own headers."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None and shutil.which("clang++") is None:
        return f"a C++ compiler ({compiler}; or set CXX)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers (in Debian's python3-dev)"
    return None


@cache  # one class for all layers: they share compiled code
def _not_compiled(kind: Any) -> Any:
    forward: Any = torch.compiler.disable(kind.forward)  # type: ignore[no-untyped-call]
    return type(kind.__name__, (kind,), {"forward": forward})
