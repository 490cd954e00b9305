"""Estimate the disk and time of a run before it starts, roughly, from the models' arithmetic.

Work of a forward pass per second of audio (one multiply-add = 2 operations, 50 frames a second): convolutional stem = sum over
its layers of 2 n C_out C_in k; linear layers 24 L T d^2 (46 in a conformer); attention 4 L T^2 d.
Training costs three forward passes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_hpc.config.settings import AcrnnModel, EncoderModel, ModelSettings
from ser_hpc.run.experiment import Experiment

# Sustained operations per second assumed in training; measured throughput differs with size, precision and machine.
_GPU_FLOPS = 100e12
_CORE_FLOPS = 20e9
_STEM_KERNELS, _STEM_STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
_BYTES_PER_PARAMETER = 4
_CHECKPOINT_COPIES = 3 * 2 + 1  # weights and two moments, two checkpoints, and the best weights


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Cost of a run: `disk_peak` while all trials train, `disk_end` after them (bytes); `hours` of one rank for all trials."""

    parameters: float
    disk_peak: float
    disk_end: float
    hours: float


def estimate_cost(experiment: Experiment, *, on_gpu: bool) -> CostEstimate:
    """Estimate what all trials of the run cost on GPUs or on CPU cores."""
    settings, seconds = experiment.settings, experiment.index.metadata.seconds
    mean = float(seconds.mean())
    parameters, flops = _size(settings.model, mean)
    frozen = isinstance(settings.model, EncoderModel) and settings.model.freeze == "encoder"
    if settings.uses_feature_cache:  # its encoder runs once
        audio = seconds[experiment.targets >= 0].sum()
    else:
        passes = 1 if frozen else 3
        audio = sum(
            settings.train.epochs * (passes * seconds[fold.train.positions].sum() + seconds[fold.dev.positions].sum())
            for fold in experiment.folds.folds
        ) * len(settings.seeds)
    saved = 0.0 if frozen else parameters  # a head's are few
    weights = saved * _BYTES_PER_PARAMETER * len(experiment.trials)
    rate = _GPU_FLOPS if on_gpu else _CORE_FLOPS
    return CostEstimate(parameters, weights * _CHECKPOINT_COPIES, weights, float(audio) * flops / rate / 3600)


def _size(model: ModelSettings, clip_seconds: float) -> tuple[float, float]:
    """Return the number of parameters, and operations of a forward pass per second of audio; of a model from outside the
    package those of wav2vec2-base, for want of better."""
    if isinstance(model, AcrnnModel):
        return _acrnn(model)
    model = model if isinstance(model, EncoderModel) else EncoderModel()
    shape = _shape(model)
    width, layers = shape.get("hidden_size", shape.get("d_model", 768)), shape.get("num_hidden_layers", 12)
    family = shape.get("model_type", "")
    stem_widths = [] if family == "wav2vec2-bert" else shape.get("conv_dim", [512] * 7)
    stem, stem_parameters, rate, before = 0.0, 0.0, 16_000.0, 1
    kernels, strides = shape.get("conv_kernel", _STEM_KERNELS), shape.get("conv_stride", _STEM_STRIDES)
    for after, kernel, stride in zip(stem_widths, kernels, strides, strict=False):
        rate /= stride
        stem += 2 * rate * after * before * kernel
        stem_parameters += after * before * kernel
        before = after
    frames = 50 * clip_seconds
    squares = 23 if family in ("wav2vec2-bert", "wav2vec2-conformer") else 12  # matrices of width**2 in a layer
    layer = 2 * squares * 50 * width**2 + 4 * 50 * frames * width
    return stem_parameters + layers * squares * width**2 + width**2 * 8, stem + layers * layer


def _shape(model: EncoderModel) -> dict[str, Any]:
    """Return the encoder's sizes, from its configuration where that is at hand, else from its name."""
    if model.config is not None:
        return model.config
    local = Path(model.weights or "") / "config.json"
    if local.is_file():
        shape: dict[str, Any] = json.loads(local.read_text(encoding="utf-8"))
        return shape
    return {"hidden_size": 1024, "num_hidden_layers": 24} if "large" in (model.weights or "") else {}


def _acrnn(model: AcrnnModel) -> tuple[float, float]:
    mels, frames = model.mels, 100  # a second; the first pooling leaves half the frames and a quarter of the bands
    first = 2 * frames * mels * model.first_channels * 3 * 15
    pooled = frames / 2 * (mels // 4)
    rest = sum(
        2 * pooled * model.channels * before * 15 for before in [model.first_channels] + [model.channels] * (model.layers - 2)
    )
    linear = model.channels * (mels // 4) * model.linear
    lstm = 2 * 4 * model.cells * (model.linear + model.cells)
    convolutions = 15 * (3 * model.first_channels + model.first_channels * model.channels)
    parameters = convolutions + 15 * max(0, model.layers - 2) * model.channels**2 + linear + lstm
    return parameters, first + rest + 2 * frames / 2 * (linear + lstm)
