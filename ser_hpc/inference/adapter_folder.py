"""Write and read adapter folders: LoRA as PEFT saves it, and the heads above it, over an encoder that lies elsewhere.

    adapter_config.json  adapter_model.safetensors    for peft.PeftModel.from_pretrained(ENCODER, FOLDER), transformers' encoder
    heads.safetensors                                 heads by task, and the sum of layers if there is one
    ser_hpc.json                                      what the model is; the base by its name and the SHA-256 of its weights

Over another base an adapter is noise, so one whose weights have another digest is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ser_hpc.config.adapters import Adapter, LowRankSettings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.atomic_io import follow_umask, write_json
from ser_hpc.core.errors import UserError, listed
from ser_hpc.inference.ensemble import Ensemble, Heads
from ser_hpc.inference.folder import portable
from ser_hpc.inference.spec import ModelSpec
from ser_hpc.inference.trials import RunModels
from ser_hpc.models.adapters import lora_config, merge_lora
from ser_hpc.models.classifier import Classifier, build_for_tasks
from ser_hpc.run.run_dir import Trial

RECORD, CONFIG, WEIGHTS, HEADS = "ser_hpc.json", "adapter_config.json", "adapter_model.safetensors", "heads.safetensors"
_KEPT = ("num_layers", "freeze", "freeze_layers")  # of the settings: how the encoder is cut, and where the adapter is
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Adapter)


def write_adapter(folder: Path, run: RunModels, trial: Trial) -> ModelSpec:
    """Write a trial's adapter and heads into a folder that is there. Raises UserError where it has none that PEFT knows."""
    spec = run.spec([trial])
    model = spec.model
    if not isinstance(model, EncoderModel) or not isinstance(model.adapter, LowRankSettings):
        raise UserError(f"{run.run.path} trained no adapter of the kind lora or qlora: export it without --adapter")
    if model.weights is None or model.init_from is not None:
        base = "random weights" if model.weights is None else f"the encoder of {model.init_from}"
        raise UserError(f"the adapter of {run.run.path} is over {base}, which nobody else can load: export without --adapter")
    classifier = run.classifier(spec, trial)
    lora, name = _lora_of(classifier.encoder), Path(model.weights).name if Path(model.weights).exists() else model.weights
    config = lora_config(model.adapter, sorted({key.partition(".lora_")[0] for key in lora}))
    config.base_model_name_or_path, config.inference_mode = name, True
    config.save_pretrained(str(folder))
    save_file({_to_peft(key): tensor.contiguous() for key, tensor in lora.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    save_file(dict(_heads_of(classifier, spec.main)), folder / HEADS, metadata={"format": "pt"})
    for file in (WEIGHTS, HEADS):
        follow_umask(folder / file)
    record = {
        "model": portable(spec, _as_ensemble(classifier, spec)).as_json(),
        "adapter": model.adapter.model_dump(mode="json"),
        "encoder": {key: getattr(model, key) for key in _KEPT},
        "base": {"name": name, "sha256": base_digest(model)},
    }
    write_json(folder / RECORD, record)
    return spec


def read_adapter(folder: Path, base: str | None, calibrated: bool = True) -> tuple[ModelSpec, Ensemble]:
    """Read such a folder over `base`, a folder or a name on the hub, on the CPU, and merge it. Raises UserError where the base
    is another one or is not given (nothing is loaded by a name in a folder), or the folder is damaged."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        spec, named = ModelSpec.from_json(record["model"], str(path)), record["base"]
        adapter = _ADAPTER.validate_python(record["adapter"])
        name, sha256 = str(named["name"]), str(named["sha256"])
        changes = {"weights": base or name, "config": None, "adapter": adapter}
        model = spec.model.model_copy(update=changes | {key: record["encoder"][key] for key in _KEPT})
        tensors, heads = (load_file(folder / file) for file in (WEIGHTS, HEADS))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError, SafetensorError) as error:
        raise UserError(f"{path} is damaged, or what lies beside it: {error}") from error
    if not isinstance(model, EncoderModel) or not isinstance(adapter, LowRankSettings):
        raise UserError(f"{path} is damaged: it describes no adapter over an encoder")
    if base is None:
        raise UserError(f"{folder} is an adapter over {name}: give that encoder, a folder or its name on the hub, by --base")
    if base_digest(model) != sha256:
        raise UserError(
            f"{base} is not the base that {folder} was trained over, {name} (its weights have another SHA-256): give that one "
            "by --base"
        )
    classifier = build_for_tasks(model, spec.tasks, 0)
    wanted = {_to_peft(key): key for key in _lora_of(classifier.encoder)}
    own = _heads_of(classifier, spec.main)
    if other := sorted((wanted.keys() ^ tensors.keys()) | (own.keys() ^ heads.keys())):
        raise UserError(f"{folder} is not of the model that {RECORD} describes: {listed(other, 3)}")
    try:
        classifier.encoder.load_state_dict({wanted[key]: tensor for key, tensor in tensors.items()}, strict=False)
        classifier.load_state_dict({_of_classifier(key, spec.main): tensor for key, tensor in heads.items()}, strict=False)
    except RuntimeError as error:
        raise UserError(f"{folder} is not of the model that {RECORD} describes: {error}") from error
    merge_lora(classifier.encoder)
    module = _as_ensemble(classifier, spec)
    module.temperatures = [spec.members[0].temperatures if calibrated else {}]
    return spec, module


def base_digest(model: EncoderModel) -> str:
    """Hash names and values of the encoder's weights, float32, without an adapter: SHA-256 in hex. Raises UserError."""
    from ser_hpc.models.encoders.pretrained import load_encoder  # transformers takes seconds to import

    with torch.random.fork_rng(devices=[]):
        _, encoder, _ = load_encoder(model)
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _as_ensemble(classifier: Classifier, spec: ModelSpec) -> Ensemble:
    heads = Heads.of(classifier, 0, spec.main)
    return Ensemble([(classifier.frontend, classifier.encoder)], [heads], spec.targets, [{}])


def _lora_of(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in encoder.state_dict().items() if ".lora_" in name}


def _to_peft(name: str) -> str:
    """Name a tensor of PEFT's as it is in its files: without the adapter's name, and DoRA's without `.weight`."""
    plain = name.replace(".default", "")
    return "base_model.model." + (plain.removesuffix(".weight") if "lora_magnitude_vector" in plain else plain)


def _heads_of(classifier: Classifier, main: str) -> dict[str, Tensor]:
    """Return all outside the encoder, by name; the main task's head under the task's."""
    every = {name: tensor for name, tensor in classifier.state_dict().items() if not name.startswith("encoder.")}
    return {
        f"{main}.{name.removeprefix('head.')}" if name.startswith("head.") else name: tensor.contiguous()
        for name, tensor in every.items()
    }


def _of_classifier(name: str, main: str) -> str:
    return f"head.{name.removeprefix(f'{main}.')}" if name.startswith(f"{main}.") else name
