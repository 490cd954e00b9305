"""Estimate the disk and time of a run before it starts, roughly, from the models' arithmetic (models/size.py).

Training costs three forward passes, of what is frozen one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ser_hpc.config.heads import HeadSettings, MeanPoolSettings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.engine.schedule import Schedule
from ser_hpc.models.size import ModelSize, model_size
from ser_hpc.run.experiment import Experiment

# Sustained operations per second assumed; measured throughput differs with size, precision and machine.
_GPU_FLOPS = 100e12
_CORE_FLOPS = 20e9
_BYTES_PER_PARAMETER = 4
_CHECKPOINT_COPIES = 3 * 2 + 1  # weights and two moments, two checkpoints, and the best weights


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Cost of a run: `disk_peak` while all trials train, `disk_end` after them (bytes); `hours` of one rank for all trials."""

    model: ModelSize
    disk_peak: float
    disk_end: float
    hours: float


def estimate_cost(experiment: Experiment, *, on_gpu: bool) -> CostEstimate:
    """Estimate what all trials of the run cost on GPUs or on CPU cores."""
    settings, seconds = experiment.settings, experiment.index.metadata.seconds
    chosen: HeadSettings = getattr(settings.model, "head", MeanPoolSettings())
    heads = {task.name: (task.head or chosen, task.target.width) for task in experiment.tasks}
    model = model_size(settings.model, heads, float(seconds.mean()))
    frozen = isinstance(settings.model, EncoderModel) and settings.model.freeze == "encoder"
    if settings.uses_feature_cache:  # its encoder runs once
        audio = seconds[experiment.targets >= 0].sum()
    else:
        train = settings.train
        passes = train.epochs if frozen else 3 * train.epochs - 2 * train.freeze_epochs
        audio = sum(
            passes * seconds[fold.train.positions].sum()
            + Schedule.of_settings(train, len(fold.train.positions)).evaluations * seconds[fold.dev.positions].sum()
            for fold in experiment.folds.folds
        ) * len(settings.seeds)
    saved = model.trained if 2 * model.trained < model.parameters else model.parameters  # frozen_params.py: what is saved
    weights = float(saved * _BYTES_PER_PARAMETER * len(experiment.trials))
    rate = _GPU_FLOPS if on_gpu else _CORE_FLOPS
    return CostEstimate(model, weights * _CHECKPOINT_COPIES, weights, float(audio) * model.flops / rate / 3600)
