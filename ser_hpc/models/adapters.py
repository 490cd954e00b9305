"""Apply adapters: what is trained of an encoder, or put into it, in the place of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ser_hpc.config.adapters import AdapterSettings, BitFitSettings, LowRankSettings, QloraSettings
from ser_hpc.config.extension_errors import explain_errors
from ser_hpc.core.errors import UserError, listed

# By the names that transformers' encoders give them: Wav2Vec2 and its kin, Whisper, the conformers.
LORA_TARGETS = (
    *("q_proj", "k_proj", "v_proj", "out_proj", "linear_q", "linear_k", "linear_v", "linear_out"),
    *("intermediate_dense", "output_dense", "fc1", "fc2", "query_proj", "key_proj", "value_proj"),
)


def apply_adapter(settings: AdapterSettings | None, encoder: nn.Module) -> None:
    """Change the encoder in place as the settings say; none: nothing. Raises UserError where nothing of it is trained then."""
    match settings:
        case None:
            return
        case BitFitSettings():
            train_biases_only(encoder)
        case LowRankSettings():
            add_lora(settings, encoder)
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


def add_lora(settings: LowRankSettings, encoder: nn.Module) -> None:
    """Put LoRA beside the chosen linear layers, of those that are not frozen, and freeze all else; for QLoRA, keep these and
    the other layers' matrices in four bits. Raises UserError where there is none of these names, or a package is missing."""
    peft = _peft(settings)
    linear = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    learning = [name for name, module in linear.items() if module.weight.requires_grad]
    wanted = settings.targets or LORA_TARGETS
    chosen = [name for name in learning if any(_is_end(name, target) for target in wanted)]
    unknown = [target for target in settings.targets if not any(_is_end(name, target) for name in linear)]
    if unknown or not chosen:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        what = f"has no linear layer {listed(unknown)}" if unknown else "has no such layer that is not frozen"
        raise UserError(f"model.adapter.targets: this encoder {what}; its linear layers end in {listed(ends, 20)}")
    encoder.requires_grad_(False)
    if isinstance(settings, QloraSettings):
        _quantise(encoder, [name for name in linear if name in chosen or any(_is_end(name, end) for end in LORA_TARGETS)])
    peft.inject_adapter_in_model(lora_config(settings, chosen), encoder)


def lora_config(settings: LowRankSettings, names: Sequence[str]) -> Any:
    """Return PEFT's configuration (`LoraConfig`) of an adapter beside these layers."""
    return _peft(settings).LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        target_modules=list(names),
        bias="none",
    )


def _peft(settings: LowRankSettings) -> Any:
    try:
        import peft
    except ImportError as error:
        what = f"model.adapter={settings.kind} needs the PEFT package"
        raise UserError(f"{what} ({error}): pip install 'ser_hpc[adapters]'") from error
    return peft


def _quantise(encoder: nn.Module, names: Sequence[str]) -> None:
    try:
        from ser_hpc.models import quantised  # bitsandbytes takes seconds to import
    except ImportError as error:
        what = "model.adapter=qlora needs the bitsandbytes package"
        raise UserError(f"{what} ({error}): pip install 'ser_hpc[qlora]'") from error
    quantised.quantise(encoder, names)


def merge_lora(encoder: nn.Module) -> None:
    """Add what LoRA has learnt to the matrices that it stands beside, in place: the encoder is a plain one again, without
    four-bit weights: those are widened first, so that nothing is rounded once more."""
    layer: Any
    for name, layer in list(encoder.named_modules()):
        if hasattr(layer, "widened"):
            _replace(encoder, name, layer.widened())
    for name, layer in list(encoder.named_modules()):
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer"):
            layer.merge(safe_merge=True)
            _replace(encoder, name, layer.get_base_layer())


def _replace(encoder: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(encoder.get_submodule(parent), last, module)


def _is_end(name: str, target: str) -> bool:
    """Tell whether a pattern matches a module's name, or its last parts."""
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")
