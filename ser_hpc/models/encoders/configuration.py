"""Read and check an encoder's configuration without torch, so that login nodes can do it before anything is queued.

`python -m ser_hpc.models.encoders.configuration` reads the model's settings as JSON and answers with {"error": ..., "notes":
[...]}: is there such a configuration, is it possible, are its weights there? Torch is kept out of that process: transformers
would import it, to describe models by their configurations alone.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig

from ser_hpc.config.adapters import LowRankSettings
from ser_hpc.config.heads import ProbeSettings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.errors import UserError, listed

PACKED = ("wav2vec2", "hubert", "wavlm", "whisper")
# Run by transformers' own forward, padded or in groups of equal length (padded.py).
_OTHERS = ("data2vec-audio", "sew", "sew-d", "unispeech", "unispeech-sat", "wav2vec2-bert", "wav2vec2-conformer")
FAMILIES = PACKED + _OTHERS
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LFS = b"version https://git-lfs"
_ANSWER_S = 10.0
_CONFIG = "model.config"
_COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "encoder_layers", "encoder_ffn_dim")


def read_configuration(settings: EncoderModel, *, cached: bool = False) -> Any:
    """Read transformers' configuration of the encoder. `cached`: of a hub name, only what is here. Raises UserError."""
    if settings.weights is None:
        config, source = _random(settings.config or {}), _CONFIG
    else:
        config, source = _pretrained(settings.weights, cached), f"model.weights {settings.weights}"
    if config.model_type not in FAMILIES:
        raise UserError(f"{source}: its model_type is {config.model_type!r}; use one of {', '.join(FAMILIES)}")
    too_few = _cut(config, settings.num_layers)
    if problems := [*too_few, *_unsupported(config, settings), *_impossible(config, settings.freeze_layers)]:
        raise UserError(
            "\n  ".join([f"{source} cannot be built:", *problems]) if len(problems) > 1 else f"{source}: {problems[0]}"
        )
    return config


def check_configuration(settings: EncoderModel) -> list[str]:
    """Check it; returns notes. Raises UserError for a configuration that is missing or impossible, and for missing weights."""
    name = settings.weights
    if name is None:
        return _slow(read_configuration(settings))
    if Path(name).is_dir() or not HUB_NAME.fullmatch(name):
        config = read_configuration(settings)
        _weights_in(Path(name))
        return _slow(config)
    here = [file for file in ("config.json", *_WEIGHTS) if isinstance(try_to_load_from_cache(name, file), str)]
    if "config.json" not in here:
        _ask_hub(name, ("config.json",))
    notes = _slow(read_configuration(settings, cached="config.json" in here))
    if set(here) & set(_WEIGHTS):
        return notes
    _ask_hub(name, _WEIGHTS)
    return [
        *notes,
        f"the weights of {name} are not here yet: the trials fetch them from the hub, which compute nodes often cannot reach. "
        f"To have them first: hf download {name}",
    ]


def num_layers(config: Any) -> int:
    """Count the transformer's layers."""
    layers: int = config.encoder_layers if config.model_type == "whisper" else config.num_hidden_layers
    return layers


def norms_last(config: Any) -> bool:
    """Tell whether the norm beside the transformer's layers comes after them, not before."""
    return config.model_type == "wav2vec2-conformer" or bool(getattr(config, "do_stable_layer_norm", False))


def is_squeezed(config: Any) -> bool:
    """Tell whether layers run on fewer frames than the encoder returns: SEW merges them in pairs."""
    return getattr(config, "squeeze_factor", 1) > 1


def depends_on_padding(config: Any) -> bool:
    """Tell whether, by transformers' own forward, frames depend on what stands behind their clip, masked or not: the first
    layer's group norm averages over it, and a pair of frames may be half of it."""
    return is_squeezed(config) or getattr(config, "feat_extract_norm", "layer") == "group"


def mel_bands(config: Any) -> int | None:
    """Return how many bands the encoder's log-Mel frames have, two frames side by side; None: it takes sound."""
    return None if hasattr(config, "conv_dim") else config.feature_projection_input_dim // 2


def least_samples(config: Any) -> int:
    """Count the samples that a clip needs for one frame of the layers."""
    least: int = getattr(config, "squeeze_factor", 1)
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        least = (least - 1) * stride + kernel
    return least


def _slow(config: Any) -> list[str]:
    if config.model_type in PACKED or not depends_on_padding(config):
        return []
    return [
        f"{config.model_type}: only clips of equal length share a call, as this encoder's frames depend on padding; "
        "on a GPU that is slow"
    ]


_BAD_FILES = (OSError, ValueError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError)


@contextmanager
def explain_loading_errors(source: str) -> Iterator[None]:
    """Raise a UserError for what transformers, the hub and file formats raise for a wrong name, damaged file or bad value."""
    try:
        yield
    except (*_BAD_FILES, SafetensorError, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines()] or [""]
        reason = " ".join(lines[: 1 + lines[0].endswith(":")])
        takes = "model.weights takes a folder with config.json and model.safetensors, or a name on the Hugging Face hub that is"
        advice = "" if source == _CONFIG else f". {takes} cached here or reachable"
        raise UserError(f"{source}: the encoder cannot be loaded ({type(error).__name__}: {reason}){advice}") from error


def _pretrained(weights: str, cached: bool) -> Any:
    folder = Path(weights)
    if not folder.is_dir() and not HUB_NAME.fullmatch(weights):
        raise UserError(f"model.weights: there is no folder {weights}; give one with config.json and model.safetensors")
    with explain_loading_errors(weights):
        content = json.loads((folder / "config.json").read_text(encoding="utf-8")) if (folder / "config.json").exists() else {}
        family = content.get("model_type") if isinstance(content, dict) else None
        if family is not None and family not in FAMILIES:  # one that transformers may not know, or not without torch
            raise UserError(f"model.weights {weights}: its model_type is {family!r}; use one of {', '.join(FAMILIES)}")
        return AutoConfig.from_pretrained(weights, local_files_only=cached)


def _random(given: dict[str, Any]) -> Any:
    family = given["model_type"]
    if family not in FAMILIES:
        raise UserError(f"model.config.model_type is {family!r}; use {', '.join(FAMILIES)}")
    default = AutoConfig.for_model(family)
    unknown = sorted(set(given) - set(default.to_dict()) - set(default.attribute_map) - {"model_type"})
    if unknown:
        raise UserError(f"model.config: transformers' {family} configuration has no {listed(unknown)}")
    with explain_loading_errors(_CONFIG):
        return AutoConfig.for_model(**given)


def _unsupported(config: Any, settings: EncoderModel) -> Iterator[str]:
    if settings.freeze == "feature_encoder" and not hasattr(config, "conv_dim") and config.model_type != "whisper":
        other = "use none, encoder, or model.freeze_layers"
        yield f"model.freeze=feature_encoder: {config.model_type} has no convolutional one; {other}"
    if isinstance(settings.head, ProbeSettings) and settings.head.layers != "last":
        if is_squeezed(config):
            yield f"model.head.layers: the layers of {config.model_type} have fewer frames than it returns; use last"
        elif settings.head.layers != "all" and max(settings.head.layers, default=0) > num_layers(config):
            yield f"model.head.layers has {max(settings.head.layers)}, but this encoder's are 0 to {num_layers(config)}"
    if (
        isinstance(settings.adapter, LowRankSettings)
        and not settings.adapter.targets
        and settings.freeze_layers == num_layers(config)
    ):
        what = f"model.adapter={settings.adapter.kind} stands in layers, and model.freeze_layers freezes all"
        yield f"{what} {settings.freeze_layers}: freeze fewer"
    if settings.layers == "weighted" and is_squeezed(config):
        yield f"model.layers=weighted: the layers of {config.model_type} have fewer frames than it returns; use last"
    if settings.freeze_layers and config.model_type == "sew-d":
        yield "model.freeze_layers: sew-d's layers share their position embeddings; use model.freeze"
    if getattr(config, "add_adapter", False):
        yield "encoders with a convolutional adapter (add_adapter) are not supported"
    if getattr(config, "conv_pos_batch_norm", False):
        yield "conv_pos_batch_norm is not supported: a clip's score would depend on its batch"


def _cut(config: Any, layers: int | None) -> list[str]:
    """Let the configuration end after so many layers, None: where it does. Returns what is wrong with that."""
    if layers is None:
        return []
    if layers > num_layers(config):
        return [f"model.num_layers is {layers}, but this encoder has {num_layers(config)} layers"]
    config.num_hidden_layers = layers
    if config.model_type == "whisper":
        config.encoder_layers = layers
    return []


def _impossible(config: Any, freeze_layers: int) -> Iterator[str]:
    """Yield what transformers' configurations accept, and its models do not."""
    for name in _COUNTS:
        if (value := getattr(config, name, None)) is not None and value < 1:
            yield f"{name} is {value}: at least 1 is needed"
            return
    if config.hidden_size % config.num_attention_heads:
        yield f"hidden_size {config.hidden_size} is not divisible by its {config.num_attention_heads} attention heads"
    layers = num_layers(config)
    if freeze_layers > layers:
        yield f"model.freeze_layers is {freeze_layers}, but this encoder has {layers} layers"
    if not hasattr(config, "conv_dim"):
        return
    groups = config.num_conv_pos_embedding_groups
    if groups < 1 or config.hidden_size % groups:
        yield f"hidden_size {config.hidden_size} is not divisible by num_conv_pos_embedding_groups, {groups}"
    if (norm := getattr(config, "feat_extract_norm", "layer")) not in ("group", "layer"):
        yield f"feat_extract_norm is {norm!r}; use group or layer"
    if not config.conv_dim or min([*config.conv_dim, *config.conv_kernel, *config.conv_stride]) < 1:
        yield "conv_dim, conv_kernel and conv_stride need at least one layer, and numbers from 1"


def _weights_in(folder: Path) -> None:
    """Raise UserError unless the folder holds weights, whole as far as their names and first bytes tell."""
    found = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if found is None:
        has = listed(sorted(path.name for path in folder.iterdir()))
        raise UserError(f"model.weights {folder}: it has no model.safetensors (nor pytorch_model.bin), but only {has}")
    files = [found]
    if found.suffix == ".json":
        with explain_loading_errors(str(found)):
            parts = json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(parts))]
        if missing := [path.name for path in files if not path.exists()]:
            raise UserError(f"model.weights {folder}: parts of the weights are missing, {listed(missing, 4)}")
    for path in files:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
        if not start or start == _LFS:
            what = "a pointer of git-lfs, not the weights: git lfs pull" if start else "empty"
            raise UserError(f"model.weights {folder}: {path.name} is {what}")


def _ask_hub(name: str, files: tuple[str, ...]) -> None:
    """Raise UserError unless the hub has one of these files of `name`; asked once, without retries."""
    absent = f"model.weights {name}: there is no such folder, and it is not cached here"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{absent}; the hub is not asked, for HF_HUB_OFFLINE is set. Elsewhere: hf download {name}")
    for file in files:
        try:
            get_hf_file_metadata(hf_hub_url(name, file), timeout=_ANSWER_S)
            return
        except RemoteEntryNotFoundError:
            continue
        except GatedRepoError:
            raise UserError(f"{absent}; the hub asks who you are first: accept its terms there, then hf auth login") from None
        except RepositoryNotFoundError:
            raise UserError(f"{absent}; nor is there such a name on the hub (or not for you: hf auth login)") from None
        except Exception as error:  # whatever the HTTP library calls it
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{absent}, nor can the hub be reached ({reason}). Give a folder with config.json and model.safetensors, or on "
                f"a machine with internet: hf download {name}"
            ) from None
    raise UserError(f"model.weights {name}: the hub has no {' or '.join(files)} of that name")


def main() -> int:
    answer: dict[str, Any] = {"error": None, "notes": []}
    try:
        answer["notes"] = check_configuration(EncoderModel.model_validate_json(sys.stdin.read()))
    except UserError as error:
        answer["error"] = str(error)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
