"""Read and write model folders: config.json, model.safetensors, preprocessor_config.json, README.md, in transformers' layout.

Two forms. Where encoder and head are transformers' own (Wav2Vec2, HuBERT or WavLM under the default head, one trial, one
task), the folder is transformers' own too: any program loads it, and the temperature is multiplied into the classifier. Any
other model is of the type `ser_hpc`, which `import ser_hpc.inference.register` makes known to transformers. In both, the key
`ser_hpc` of config.json says what the model is.

Reading a folder executes nothing of it: no pickle, no code, no weights from elsewhere; and before anything of the size that it
announces is made, the names and shapes of its weights are compared with those of the model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ser_hpc.config.heads import MeanPoolSettings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.atomic_io import follow_umask, write_json
from ser_hpc.core.errors import UserError, listed
from ser_hpc.inference.ensemble import Ensemble, Heads
from ser_hpc.inference.spec import ModelSpec
from ser_hpc.models.classifier import Classifier, build_for_tasks
from ser_hpc.models.frontend import Frontend

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
MODEL_TYPE = "ser_hpc"
_OWN = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}  # families, by the name of transformers' classes
_PICKLES = ("pytorch_model.bin", "model.pt", "model.pth", "model.bin", "pytorch_model.bin.index.json")
_MOST_JSON = 1 << 24  # bytes


def is_transformers_own(spec: ModelSpec) -> bool:
    """Tell whether transformers has a class for the model, which cuts no clip: then it is shipped as one of that class."""
    model = spec.model
    head = spec.heads.get(spec.main) or getattr(model, "head", None)
    alone = len(spec.members) == 1 and len(spec.targets) == 1 and spec.max_seconds is None
    family = (getattr(model, "config", None) or {}).get("model_type")
    last = isinstance(model, EncoderModel) and model.layers == "last"
    return alone and last and isinstance(head, MeanPoolSettings) and family in _OWN


def portable(spec: ModelSpec, module: Ensemble) -> ModelSpec:
    """Return the spec without what lies elsewhere: pretrained weights by name become their configuration."""
    model = spec.model
    if not isinstance(model, EncoderModel):
        return spec
    from transformers import AutoConfig

    encoder: Any = module.encoders[0]
    family = encoder.config.model_type
    known = AutoConfig.for_model(family).to_dict()
    left_out = {"architectures", "transformers_version", "dtype", "_name_or_path"}
    shape = {name: value for name, value in encoder.config.to_diff_dict().items() if name in known and name not in left_out}
    changes = {
        "weights": None,
        "init_from": None,
        "config": json.loads(json.dumps({**shape, "model_type": family})),
        "normalize": getattr(module.fronts[0], "normalize", None),
        "num_layers": None,
        "adapter": None,
        "freeze": "none",
        "freeze_layers": 0,
    }
    return replace(spec, model=model.model_copy(update=changes))


def write_model(folder: Path, spec: ModelSpec, module: Ensemble, heard: Mapping[str, Sequence[str]]) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json into a folder that is there. `module`: uncalibrated;
    `heard`: the speakers that trained it, and chose its epoch, for whoever starts from it."""
    labels = {str(i): name for i, name in enumerate(spec.classes)}
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    own = is_transformers_own(spec)
    record = spec.as_json() | {"owners": module.owners, "temperature_in_weights": own, "heard": heard}
    config: dict[str, Any] = {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}, MODEL_TYPE: record}
    if own:
        family = _family(spec)
        tensors = _calibrated_classifier(_to_transformers(tensors, spec), spec)
        config = _transformers_config(spec) | config | {"architectures": [f"{_OWN[family]}ForSequenceClassification"]}
    else:
        config |= {"model_type": MODEL_TYPE, "architectures": ["SerHpcForAudioClassification"]}
    write_json(folder / CONFIG, config | {"dtype": "float32"})
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    follow_umask(folder / WEIGHTS)
    write_json(folder / PREPROCESSOR, _preprocessor(spec, own))


def read_model(folder: Path, calibrated: bool = True) -> tuple[ModelSpec, Ensemble]:
    """Read a folder that `write_model` wrote, on the CPU. Raises UserError for whatever else it is."""
    record = _read_record(folder)
    spec = ModelSpec.from_json(record, str(folder / CONFIG))
    owners, folded = _owners(record, spec, folder), bool(record.get("temperature_in_weights"))
    if folded and not is_transformers_own(spec):
        raise UserError(f"{folder / CONFIG} is damaged: its model is no class of transformers'")
    _check_weights(folder, spec, owners, folded)
    with torch.random.fork_rng(devices=[]):
        module = empty_model(spec, owners)
    tensors = load_file(folder / WEIGHTS)
    module.load_state_dict(_from_transformers(tensors, spec) if folded else tensors, strict=True)
    own = [member.temperatures for member in spec.members]
    if folded:  # the weights are calibrated already
        module.temperatures = [{} if calibrated else {task: 1 / t for task, t in of.items()} for of in own]
    else:
        module.temperatures = [of if calibrated else {} for of in own]
    return spec, module


def empty_model(spec: ModelSpec, owners: list[int]) -> Ensemble:
    """Build a model with random weights. `owners`: of each member's heads, the number of the encoder under them."""
    encoders: list[tuple[Frontend, nn.Module]] = []
    built: list[Classifier] = []
    for _ in range(max(owners) + 1):
        classifier = build_for_tasks(spec.model, spec.tasks, 0)
        built.append(classifier)
        encoders.append((classifier.frontend, classifier.encoder))
    heads = []
    for owner in owners:
        of = Heads.of(built[owner], owner, spec.main)
        own = {task: copy.deepcopy(head) for task, head in of.modules.items()}
        heads.append(Heads(owner, own, copy.deepcopy(of.layer_sum)))
    return Ensemble(encoders, heads, spec.targets, [{} for _ in owners])


def _read_record(folder: Path) -> dict[str, Any]:
    """Read what config.json says of the model."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > _MOST_JSON:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes: it is no configuration")
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get(MODEL_TYPE), dict):
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise UserError(
            f"{folder} holds a model of type {kind!r} that python -m ser_hpc.export did not write: its config.json does not "
            "say what its model is. Load it with transformers"
        )
    if "auto_map" in config:
        raise UserError(f"{path} asks for code of its own (auto_map); a model folder of this package never does: not loaded")
    record: dict[str, Any] = config[MODEL_TYPE]
    family = (record.get("model") or {}).get("config") if isinstance(record.get("model"), dict) else None
    named = family.get("model_type") if isinstance(family, dict) else None
    if config.get("model_type") not in (MODEL_TYPE, named):
        raise UserError(f"{path} is damaged: it is of type {config.get('model_type')!r}, and its model of type {named!r}")
    return record


def _owners(record: Mapping[str, Any], spec: ModelSpec, folder: Path) -> list[int]:
    owners = record.get("owners")
    fits = isinstance(owners, list) and len(owners) == len(spec.members) and all(type(owner) is int for owner in owners)
    if not fits or sorted({*owners}) != list(range(max(owners) + 1)):  # type: ignore[misc,arg-type]
        raise UserError(f"{folder / CONFIG} is damaged: it does not say which encoder each of its models has")
    return list(owners)  # type: ignore[arg-type]


def _check_weights(folder: Path, spec: ModelSpec, owners: list[int], folded: bool) -> None:
    """Compare names and shapes of the weights, read from the file's header, with those of the model, which takes no memory."""
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = [name for name in _PICKLES if (folder / name).exists()]
        why = f"; {pickles[0]} may be a pickle, which runs code, and is never loaded" if pickles else ""
        raise UserError(f"{folder} has no {WEIGHTS}{why}")
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    layers = spec.model.model_dump().get("config") or {}
    if max((layers.get(name, 0) for name in ("num_hidden_layers", "encoder_layers")), default=0) > len(found):
        raise UserError(f"{path} holds {len(found)} weights, and {CONFIG} announces more layers than that")
    with torch.device("meta" if isinstance(spec.model, EncoderModel) else "cpu"):  # torchaudio's filters know no meta device
        wanted: dict[str, Tensor] = empty_model(spec, owners).state_dict()
    shapes = {name: tuple(t.shape) for name, t in (_to_transformers(wanted, spec) if folded else wanted).items()}
    lacking, more = sorted(shapes.keys() - found.keys()), sorted(found.keys() - shapes.keys())
    other = [name for name in sorted(shapes.keys() & found.keys()) if shapes[name] != found[name]]
    if lacking or more:
        what = f"lacks {listed(lacking, 3)}" if lacking else f"holds {listed(more, 3)}"
        raise UserError(f"{path} is not of the model that {CONFIG} describes: it {what}")
    if other:
        name = other[0]
        raise UserError(
            f"{path} is not of the model that {CONFIG} describes: {name} has the shape {found[name]}, not {shapes[name]}"
        )


# transformers' own form


def _family(spec: ModelSpec) -> str:
    assert isinstance(spec.model, EncoderModel) and spec.model.config is not None
    return str(spec.model.config["model_type"])


def _to_transformers(tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Name weights as transformers' classes do: `wav2vec2.encoder...`, `projector`, `classifier`."""
    ours = (("encoders.0.", f"{_family(spec)}."), (f"heads.0.{spec.main}_.", ""))
    return {_renamed(name, ours): tensor for name, tensor in tensors.items()}


def _from_transformers(tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    theirs = ((f"{_family(spec)}.", "encoders.0."), ("", f"heads.0.{spec.main}_."))
    return {_renamed(name, theirs): tensor for name, tensor in tensors.items()}


def _renamed(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    old, new = next((old, new) for old, new in prefixes if name.startswith(old))
    return new + name.removeprefix(old)


def _calibrated_classifier(tensors: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Divide the last layer by the temperature: its logits are calibrated then."""
    temperature = spec.members[0].temperatures.get(spec.main, 1.0)
    return tensors | {name: tensors[name] / temperature for name in ("classifier.weight", "classifier.bias")}


def _transformers_config(spec: ModelSpec) -> dict[str, Any]:
    assert isinstance(spec.model, EncoderModel)
    from transformers import AutoConfig

    head: Any = spec.heads.get(spec.main) or spec.model.head
    shape = {**(spec.model.config or {}), "classifier_proj_size": head.projection}
    config: Any = AutoConfig.for_model(**shape)
    return {**json.loads(config.to_json_string(use_diff=True)), "problem_type": "single_label_classification"}


def _preprocessor(spec: ModelSpec, own: bool) -> dict[str, Any]:
    common = {"feature_size": 1, "sampling_rate": 16_000, "padding_value": 0.0, "padding_side": "right"}
    if not own:
        return {"feature_extractor_type": "SerHpcFeatureExtractor", **common, "return_attention_mask": True}
    assert isinstance(spec.model, EncoderModel)
    # Under a group norm transformers' own models want no mask; and are then not the same in a batch as alone.
    masks = (spec.model.config or {}).get("feat_extract_norm", "group") == "layer"
    normalize = spec.model.normalize is not False
    return {"feature_extractor_type": "Wav2Vec2FeatureExtractor", **common, "do_normalize": normalize} | {
        "return_attention_mask": masks
    }
