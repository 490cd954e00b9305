"""Encoders of the transformers library: loaded or drawn at random, made deterministic, and fed with ragged clips.

Layerdrop and transformers' own SpecAugment are switched off: with them a parameter may go unused in a step, which plain data
parallelism forbids and ZeRO-3 waits for in vain; the mask embedding, which nothing else uses, then does not exist.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging
from transformers.utils.hub import cached_file

from ser_hpc.config.settings import EncoderModel
from ser_hpc.errors import UserError, listed
from ser_hpc.models import ragged

RATE = 16_000
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
FAMILIES = ("wav2vec2", "hubert", "wavlm", "whisper")


class Waveform:
    """Wav2Vec2, HuBERT, WavLM: zero-padded waveforms, each normalised by its own statistics, with what is real told to all.

    A clip shorter than the stem's receptive field (400 samples in the published models) is padded with zeros to it: one frame.
    """

    max_seconds: float | None = None

    def __init__(self, model: Any, config: Any, normalize: bool) -> None:
        self.kernels, self.strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self.normalize = normalize
        self.least = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            self.least = (self.least - 1) * stride + kernel
        if config.feat_extract_norm == "group":
            layer = model.feature_extractor.conv_layers[0]
            layer.layer_norm = _ragged_norm(layer.layer_norm)

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        parameter = next(encoder.parameters())
        dtype = ragged.at_least_float32(parameter.dtype)
        clips = ragged.clips(samples, offsets, parameter.device, dtype)
        if self.normalize:
            clips = [_normalized(clip) for clip in clips]
        lengths = offsets.diff().clamp(min=self.least)
        most = int(lengths.max())
        waves = pad_sequence([*clips, clips[0].new_zeros(most)], batch_first=True)[:-1].to(parameter.dtype)
        ragged_batch = bool((lengths < most).any())
        mask = ragged.frame_mask(lengths, most, waves.device).long() if ragged_batch else None
        self._tell_norm(encoder, lengths if ragged_batch else None)
        frames: Tensor = encoder(waves, attention_mask=mask).last_hidden_state
        return frames, self.frames(lengths)

    def frames(self, samples: Tensor, layers: int | None = None) -> Tensor:
        """Frames after the first `layers` convolutions of the stem (none: all) for so many samples, elementwise."""
        for kernel, stride in list(zip(self.kernels, self.strides, strict=True))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples

    def _tell_norm(self, encoder: Any, lengths: Tensor | None) -> None:
        norm = getattr(encoder.feature_extractor.conv_layers[0], "layer_norm", None)
        if isinstance(norm, ragged.RaggedGroupNorm):
            norm.lengths = None if lengths is None else self.frames(lengths, layers=1).tolist()


class WhisperMel:
    """Whisper: transformers' log-Mel spectrogram, padded to the encoder's full length (30 s); longer clips are cut to it."""

    def __init__(self, config: Any) -> None:
        self.extractor: Any = WhisperFeatureExtractor(feature_size=config.num_mel_bins)  # type: ignore[no-untyped-call]
        self.stride = 2 * self.extractor.hop_length  # samples per frame: the second convolution halves the rate
        self.most = config.max_source_positions
        self.max_seconds: float | None = self.most * self.stride / RATE

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        parameter = next(encoder.parameters())
        clips = ragged.clips(samples, offsets, torch.device("cpu"), torch.float32)
        # One by one: over a batch its matrix product rounds otherwise.
        with torch.autocast("cpu", enabled=False):
            mels = torch.cat([self.features(clip) for clip in clips])
        frames: Tensor = encoder(mels.to(parameter.device, parameter.dtype)).last_hidden_state
        lengths = (offsets.diff() + self.stride - 1) // self.stride
        return frames, lengths.clamp(1, self.most)

    def features(self, clip: Tensor) -> Tensor:
        """(samples,) -> (1, bands, 2 * positions)."""
        features: Tensor = self.extractor(
            clip.numpy(), sampling_rate=RATE, max_length=self.most * self.stride, return_tensors="pt"
        ).input_features
        return features


def load(settings: EncoderModel) -> tuple[Waveform | WhisperMel, nn.Module, int]:
    """The front, transformers' encoder (float32, on the CPU) and the width of its frames.

    Random weights are drawn from torch's CPU generator. Raises UserError in words where the weights or the configuration are
    missing, damaged, unreachable or of another family.
    """
    config = _pretrained_config(settings.weights) if settings.weights else _random_config(settings.config or {})
    _check(config, settings.weights or "config")
    for name in config.to_dict():
        if name.endswith("layerdrop"):
            setattr(config, name, 0.0)
        elif settings.dropout is not None and (name == "dropout" or name.endswith("_dropout")):
            setattr(config, name, settings.dropout)
    config.apply_spec_augment = False
    config.mask_time_prob = config.mask_feature_prob = 0.0
    model = _pretrained(settings.weights, config) if settings.weights else _random(config)
    front = WhisperMel(config) if config.model_type == "whisper" else Waveform(model, config, _normalize(settings))
    if settings.freeze == "stem":
        _freeze_stem(model)
    return front, model, config.hidden_size


def _freeze_stem(model: Any) -> None:
    if isinstance(model, WhisperEncoder):
        for convolution in (model.conv1, model.conv2):
            convolution.requires_grad_(False)
    else:  # all that transformers' `freeze_feature_encoder` does (HuBERT's bare model lacks it): the input needs no gradient
        model.feature_extractor._freeze_parameters()


def _ragged_norm(norm: nn.GroupNorm) -> ragged.RaggedGroupNorm:
    ours = ragged.RaggedGroupNorm(norm.num_groups, norm.num_channels, norm.eps)
    ours.weight, ours.bias = norm.weight, norm.bias
    return ours


def _normalized(clip: Tensor) -> Tensor:
    """Zero mean, unit variance, as Wav2Vec2FeatureExtractor. An unreadable clip may be empty: it stays so."""
    return (clip - clip.mean()) / (clip.var(correction=0) + 1e-7).sqrt() if len(clip) else clip


def _normalize(settings: EncoderModel) -> bool:
    if settings.normalize is not None or settings.weights is None:
        return settings.normalize is not False
    with _in_words(settings.weights):
        path = cached_file(settings.weights, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        told = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return bool(told.get("do_normalize", True))


def _pretrained_config(weights: str) -> Any:
    if not Path(weights).is_dir() and not HUB_NAME.fullmatch(weights):
        raise UserError(f"model.weights: there is no folder {weights}; give one with config.json and model.safetensors")
    with _in_words(weights):
        return AutoConfig.from_pretrained(weights)


def _random_config(given: dict[str, Any]) -> Any:
    family = given["model_type"]
    if family not in FAMILIES:
        raise UserError(f"model.config.model_type is {family!r}; use {', '.join(FAMILIES)}")
    default = AutoConfig.for_model(family)
    unknown = sorted(set(given) - set(default.to_dict()) - set(default.attribute_map) - {"model_type"})
    if unknown:
        raise UserError(f"model.config: transformers' {family} configuration has no {listed(unknown)}")
    with _in_words("model.config"):
        return AutoConfig.for_model(**given)


def _check(config: Any, source: str) -> None:
    if config.model_type not in FAMILIES:
        raise UserError(f"model.weights {source}: its model_type is {config.model_type!r}; use one of {', '.join(FAMILIES)}")
    if getattr(config, "add_adapter", False):
        raise UserError(f"{source}: encoders with a convolutional adapter (add_adapter) are not supported")
    if getattr(config, "conv_pos_batch_norm", False):
        raise UserError(f"{source}: conv_pos_batch_norm is not supported: a clip's score would depend on its batch")


def _random(config: Any) -> nn.Module:
    with _in_words("model.config"):
        whisper = config.model_type == "whisper"
        model: nn.Module = WhisperEncoder(config) if whisper else AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    return model


def _pretrained(weights: str, config: Any) -> nn.Module:
    """Safetensors where there are any; else a pickle, read by torch's restricted loader alone."""
    family: Any = WhisperModel if config.model_type == "whisper" else AutoModel
    with _in_words(weights), _quiet():
        model, info = family.from_pretrained(
            weights, config=config, dtype=torch.float32, weights_only=True, output_loading_info=True
        )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("decoder."))
    if missing:
        raise UserError(f"model.weights {weights}: it lacks weights of the encoder: {listed(missing, 4)}")
    encoder: nn.Module = model.get_encoder() if config.model_type == "whisper" else model
    return encoder


@contextmanager
def _in_words(source: str) -> Iterator[None]:
    """What transformers, the hub and the file formats raise for a wrong name, a damaged file or a bad value, as a UserError."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [""]
        raise UserError(
            f"{source}: the encoder cannot be loaded ({type(error).__name__}: {lines[0]}). model.weights takes a folder with "
            "config.json and model.safetensors, or a name on the Hugging Face hub that is cached here or reachable"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of weights that the classifier has no use for (its missing ones are checked here)."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
