"""Apply adapters: what is trained of an encoder, or put into it, in the place of the whole."""

from __future__ import annotations

from torch import nn

from ser_hpc.config.adapters import AdapterSettings, BitFitSettings
from ser_hpc.config.extension_errors import explain_errors
from ser_hpc.core.errors import UserError


def apply_adapter(settings: AdapterSettings | None, encoder: nn.Module) -> None:
    """Change the encoder in place as the settings say; none: nothing. Raises UserError where nothing of it is trained then."""
    match settings:
        case None:
            return
        case BitFitSettings():
            train_biases_only(encoder)
        case _:
            with explain_errors(settings.kind):
                settings.build(encoder)
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise UserError(
            f"model.adapter={settings.kind} trains nothing of this encoder, as model.freeze and model.freeze_layers leave it: "
            "freeze less, or leave the adapter out"
        )


def train_biases_only(encoder: nn.Module) -> None:
    """Freeze all but the biases (of those that are not frozen already), normalisations' too (Ben Zaken et al. 2022, BitFit)."""
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.endswith("bias"))
