"""Leave frozen parameters out of checkpoints, which hold what is trained, and a fingerprint of the rest.

The frozen base comes from where it came from before, the weights that the settings name; should those have changed, the
fingerprint tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ser_hpc.core.errors import UserError
from ser_hpc.models.classifier import Classifier


@dataclass(frozen=True, slots=True)
class FrozenParameters:
    """Parameters that are neither trained nor saved; `sha256` of their names and contents, "" if there are none."""

    names: frozenset[str]
    sha256: str

    @classmethod
    def from_model(cls, model: Classifier) -> FrozenParameters:
        """Find the frozen parameters of a model that holds its base's weights, if they are its encoder or most of it."""
        frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        packed = any(not parameter.is_floating_point() for parameter in frozen.values())  # four-bit weights are never saved
        if not model.freeze_encoder and not packed and sum(parameter.numel() for parameter in frozen.values()) <= trained:
            return cls(frozenset(), "")
        digest = hashlib.sha256()
        for name, parameter in sorted(frozen.items()):
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            for tensor in (parameter, *_scales(parameter)):
                digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return cls(frozenset(frozen), digest.hexdigest())

    def without(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out what is not to be saved."""
        return {name: tensor for name, tensor in tensors.items() if name not in self.names}

    def load(self, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
        """Put saved weights onto a model that holds the base."""
        missing, unexpected = model.load_state_dict(dict(saved), strict=False)
        assert set(missing) <= self.names and not unexpected, "a checkpoint holds all but the base"

    def check(self, sha256: str) -> None:
        """Compare fingerprints. Raises UserError if a checkpoint was made over another base."""
        if sha256 != self.sha256:
            raise UserError(
                "the frozen weights are not those that this trial began with: has the folder or hub repository of "
                "model.weights changed? Bring them back, or give another run.name"
            )


def _scales(parameter: Tensor) -> tuple[Tensor, ...]:
    """Return what four-bit weights (models/quantised.py) are multiplied by; of others nothing."""
    state = getattr(parameter, "quant_state", None)
    return () if state is None else (state.absmax, state.state2.absmax, state.offset)
