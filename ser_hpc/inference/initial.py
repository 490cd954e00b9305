"""Make weights that a trial starts from (`model.init_from`) of a model that was loaded, or of a checkpoint of transformers'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.inference.ensemble import Ensemble
from ser_hpc.inference.spec import ModelSpec
from ser_hpc.models.encoders.configuration import FAMILIES, explain_loading_errors
from ser_hpc.models.encoders.pretrained import quiet
from ser_hpc.models.initial import InitialWeights
from ser_hpc.tasks.targets import OverClasses


def initial_of_model(source: str, spec: ModelSpec, module: Ensemble, label_set: LabelSet) -> InitialWeights:
    """Take the weights of a model of this package. Raises UserError for an ensemble, which is several."""
    if len(spec.members) > 1:
        raise UserError(f"model.init_from {source} is the mean of {len(spec.members)} models: start from one, export --fold K")
    heads = {name.removesuffix("_"): head.state_dict() for name, head in module.heads[0].named_children()}
    classes = {name: target.classes for name, target in spec.targets.items() if isinstance(target, OverClasses)}
    classes_here: dict[str, list[str | None]] = {name: list(of) for name, of in classes.items()}
    classes_here[spec.main] = _renamed(spec.classes, label_set)
    return InitialWeights(source, module.encoders[0].state_dict(), heads, classes_here, module.layer_sums[0].state_dict())


def initial_of_checkpoint(name: str, main: str, label_set: LabelSet) -> InitialWeights:
    """Take the weights of transformers' own class for audio classification, a folder or a name on the hub; pickles are read by
    torch's restricted loader alone, and no code of it is run. Raises UserError for anything else."""
    from transformers import AutoConfig, AutoModelForAudioClassification

    with explain_loading_errors(name):
        config = AutoConfig.from_pretrained(name)
    architectures = config.architectures or []
    if config.model_type not in FAMILIES or not any(each.endswith("Classification") for each in architectures):
        raise UserError(
            f"model.init_from {name} is no checkpoint for audio classification (it says {listed(architectures) or 'nothing'}): "
            "give an encoder alone as model.weights"
        )
    with explain_loading_errors(name), quiet():
        model: Any = AutoModelForAudioClassification.from_pretrained(name, dtype=torch.float32, weights_only=True)
    encoder = model.encoder if config.model_type == "whisper" else model.base_model
    head: Mapping[str, Tensor] = {
        name: tensor for name, tensor in model.state_dict().items() if name.startswith(("projector.", "classifier."))
    }
    words = [str(config.id2label[number]) for number in range(config.num_labels)]
    return InitialWeights(name, encoder.state_dict(), {main: head}, {main: _renamed(words, label_set)})


def _renamed(words: Iterable[str], label_set: LabelSet) -> list[str | None]:
    """Return the classes of the label set that another model's classes are; of several that are one class, the first, or the
    one of its very name."""
    words = list(words)
    known = label_set.mapping | {name: name for name in label_set.classes}
    found = [known.get(word, known.get(word.lower())) for word in words]
    keep = {name: words.index(name) if name in words else found.index(name) for name in found if name is not None}
    return [name if name is not None and keep[name] == place else None for place, name in enumerate(found)]
