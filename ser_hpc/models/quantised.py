"""Keep linear layers in four bits: NF4 with double quantisation, by bitsandbytes (QLoRA, Dettmers et al. 2023).

Weights are quantised on the CPU, whatever trains: every machine then has the same numbers. Only a process that trains or
predicts by QLoRA imports this module.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import torch
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

# By the digest of the weights: 0.04 s of a core for each million of them, so a process quantises an encoder once.
_QUANTISED: dict[bytes, tuple[Tensor, QuantState]] = {}


class Nf4Linear(Linear4bit):  # type: ignore[misc]  # it has no types
    """A frozen linear layer. `weight`: uint8, two values a byte; it computes in the precision of its input, or of autocast.

    bitsandbytes' own forward packs weights anew for evaluation on some CPUs, which changes what is computed there.
    """

    def __init__(self, layer: nn.Linear) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, layer.bias is not None, quant_type="nf4")
        packed, state = _quantised(layer.weight.detach())
        self.weight = Params4bit(
            packed, requires_grad=False, quant_type="nf4", quant_state=state, bnb_quantized=True, module=self
        )
        self.quant_state, self.bias = state, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., in) -> (..., out)."""
        device = x.device.type
        x = x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out: Tensor = matmul_4bit(x, self.weight, self._state(), bias=bias)
        return out

    def widened(self) -> nn.Linear:
        """Return a plain layer of the same numbers, float32, as this one computes with."""
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        plain.weight = nn.Parameter(dequantize_4bit(self.weight.data, self._state()).float(), requires_grad=False)
        plain.bias = self.bias
        return plain

    def _state(self) -> QuantState:
        """Return the scales, which a move to another device may have left with the module."""
        return self.quant_state if self.weight.quant_state is None else self.weight.quant_state

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        """Save the parameters alone, as of any layer: checkpoints leave them out, and scales belong to them."""
        nn.Linear._save_to_state_dict(self, destination, prefix, keep_vars)


def quantise(encoder: nn.Module, names: Sequence[str]) -> None:
    """Replace these linear layers, in place."""
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(encoder.get_submodule(parent), last, Nf4Linear(encoder.get_submodule(name)))  # type: ignore[arg-type]


def _quantised(weight: Tensor) -> tuple[Tensor, QuantState | None]:
    """Quantise a matrix, or remember it: the packed values, and their scales. On the meta device there are no scales."""
    if weight.is_meta:
        return torch.empty(-(-weight.numel() // 2), 1, dtype=torch.uint8, device="meta"), None
    key = hashlib.blake2b(weight.contiguous().view(torch.uint8).numpy().data, digest_size=16).digest() + bytes(
        str(weight.shape), "ascii"
    )
    if key not in _QUANTISED:
        _QUANTISED[key] = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    packed, state = _QUANTISED[key]
    return packed.clone(), copy.deepcopy(state)  # a move to a GPU changes them in place
