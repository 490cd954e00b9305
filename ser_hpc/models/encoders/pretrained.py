"""Make encoders of the transformers library: loaded or drawn at random, made deterministic, frozen as far as the settings say.

Layerdrop and transformers' own SpecAugment are switched off (spec_augment.py is ours): with them a parameter may go unused in a
step, which plain data parallelism forbids and ZeRO-3 waits for in vain; the mask embedding, which nothing else uses, then does
not exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging
from transformers.utils.hub import cached_file

from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.errors import UserError, listed
from ser_hpc.models.encoders import configuration
from ser_hpc.models.encoders.configuration import explain_loading_errors
from ser_hpc.models.encoders.padded import PaddedFrontend
from ser_hpc.models.encoders.spec_augment import SpecAugment
from ser_hpc.models.encoders.wav2vec2 import Wav2Vec2Frontend
from ser_hpc.models.encoders.whisper import WhisperFrontend


def load_encoder(settings: EncoderModel) -> tuple[Wav2Vec2Frontend | WhisperFrontend | PaddedFrontend, nn.Module, int]:
    """Return the front, transformers' encoder (float32, on the CPU) and the width of its frames.

    Random weights are drawn from torch's CPU generator. Raises UserError where the weights or the configuration are
    missing, damaged, unreachable or of another family.
    """
    config = configuration.read_configuration(settings)
    for name in config.to_dict():
        if name.endswith("layerdrop"):
            setattr(config, name, 0.0)
        elif settings.dropout is not None and (name == "dropout" or name.endswith("_dropout")):
            setattr(config, name, settings.dropout)
    config.apply_spec_augment = False
    config.mask_time_prob = config.mask_feature_prob = 0.0
    model = _pretrained(settings.weights, config) if settings.weights else _random(config)
    for part in _frozen(model, settings):
        part.requires_grad_(False)
    masks = SpecAugment(settings.spec_augment)
    if config.model_type == "whisper":
        return WhisperFrontend(model, config, settings.whisper_pad_to_30s, masks), model, config.hidden_size
    front = Wav2Vec2Frontend if config.model_type in configuration.PACKED else PaddedFrontend
    return front(model, config, _normalize(settings), masks), model, config.hidden_size


def _frozen(model: Any, settings: EncoderModel) -> list[nn.Module]:
    """List what is not trained, whether by its name or for lying below a layer that is not. Nothing that needs a gradient lies
    below the first trained layer, so none is computed there."""
    whisper, count = isinstance(model, WhisperEncoder), settings.freeze_layers
    stem = [model.conv1, model.conv2] if whisper else _there(model, "feature_extractor")
    if not count:
        return stem if settings.freeze == "feature_encoder" else []
    if whisper:
        return [*stem, *model.layers[:count]]
    below = [*_there(model, "layer_norm", "feature_projection"), *_there(model.encoder, "pos_conv_embed")]
    if not configuration.norms_last(model.config):
        below += _there(model.encoder, "layer_norm")
    return [*stem, *below, *model.encoder.layers[:count]]


def _there(module: nn.Module, *names: str) -> list[nn.Module]:
    """List the parts of these names that it has."""
    return [getattr(module, name) for name in names if hasattr(module, name)]


def _normalize(settings: EncoderModel) -> bool:
    if settings.normalize is not None or settings.weights is None:
        return settings.normalize is not False
    with explain_loading_errors(settings.weights):
        path = cached_file(settings.weights, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        preprocessor = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return bool(preprocessor.get("do_normalize", True))


def _random(config: Any) -> nn.Module:
    with explain_loading_errors("model.config"):
        whisper = config.model_type == "whisper"
        model: nn.Module = WhisperEncoder(config) if whisper else AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    return model


def _pretrained(weights: str, config: Any) -> nn.Module:
    """Load safetensors where there are any; else a pickle, read by torch's restricted loader alone."""
    family: Any = WhisperModel if config.model_type == "whisper" else AutoModel
    with explain_loading_errors(weights), quiet():
        model, info = family.from_pretrained(
            weights, config=config, dtype=torch.float32, weights_only=True, output_loading_info=True
        )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("decoder."))
    if missing:
        raise UserError(f"model.weights {weights}: it lacks weights of the encoder: {listed(missing, 4)}")
    encoder: nn.Module = model.get_encoder() if config.model_type == "whisper" else model
    return encoder


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out transformers' table of weights that the classifier has no use for (its missing ones are checked here), and
    without its progress bar, which in a log is one long line."""
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
