"""Trained runs for the tests of what is made of them: small, and trained once a test session."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from small import packed_tones, planned, pretrained_wav2vec2, wav2vec2

from ser_hpc.engine import probe
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.fault.preemption import StopFlag
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.frozen_encoder import FrozenEncoder
from ser_hpc.engine.loop import train_trial
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.run.attempt import claim_attempt
from ser_hpc.run.experiment import reopen_experiment
from ser_hpc.run.rank import Rank
from ser_hpc.run.run_dir import RunDir, Trial

THREE_FOLDS = ("folds.protocol=speaker_groups", "folds.count=3")
GENDER = "tasks.gender={kind: classification, column: gender, head: mlp}"


def train(run: RunDir, *trials: Trial) -> RunDir:
    """Train trials, or all that are planned, in this process."""
    experiment, frozen = reopen_experiment(run), FrozenEncoder()
    for trial in trials or run.trials():
        place = run.trial(trial)
        attempt = claim_attempt(place, Rank(0, 1, 0, 1))
        data = TrialData(experiment.index, experiment.tasks, experiment.folds.folds[trial.fold])
        world = World(0, 1, 0, 1, torch.device("cpu"))
        run_trial = probe.train_trial if experiment.settings.is_probe else train_trial
        with Watchdog(300, lambda: None, exit_code=1) as watchdog:
            run_trial(place, attempt, experiment.settings, data, world, StopFlag(), watchdog, frozen)
    return run


@functools.cache
def pretrained(base: Path) -> Path:
    """Weights of a tiny Wav2Vec2, as from the hub."""
    return pretrained_wav2vec2(base / "weights")


@functools.cache
def fine_tuned(base: Path) -> RunDir:
    """Fold 0 of a Wav2Vec2 under the default head."""
    return train(planned(base / "runs", packed_tones(base), *THREE_FOLDS, "train.epochs=1"), Trial(0, 0))


@functools.cache
def several_tasks(base: Path) -> RunDir:
    """Fold 0, with another task beside emotion, and a head of another kind under it."""
    return train(planned(base / "runs", packed_tones(base), *THREE_FOLDS, GENDER, "train.epochs=1"), Trial(0, 0))


@functools.cache
def probed(base: Path) -> RunDir:
    """All three folds of a probe of a frozen encoder."""
    model = (f"model.weights={pretrained(base)}", "model.freeze=encoder")
    probe_of_all = "model.head={kind: probe, statistics: mean_std, l2: [0.1, 0.01]}"
    return train(planned(base / "runs", packed_tones(base), *model, probe_of_all, *THREE_FOLDS, plain=True))


@functools.cache
def partly_frozen(base: Path) -> RunDir:
    """Fold 0 of a Whisper whose lowest layer was not trained, under an attention head."""
    from models.tiny import CONFIGS

    model = ("model.freeze_layers=1", "model.head={kind: mlp, pooling: attention}", "train.epochs=1")
    lines = ["model.weights=null", f"model.config={CONFIGS['whisper']}", *model, *THREE_FOLDS]
    return train(planned(base / "runs", packed_tones(base), *lines, plain=True), Trial(0, 0))


@functools.cache
def acrnn(base: Path) -> RunDir:
    """Fold 0 of the recurrent network."""
    model = ["model.kind=acrnn", "model.first_channels=6", "model.channels=8", "model.layers=3", "model.linear=16"]
    more = ["model.cells=8", "model.hidden=8", "model.mels=16", "train.epochs=1", *THREE_FOLDS]
    return train(planned(base / "runs", packed_tones(base), *model, *more, plain=True), Trial(0, 0))


@functools.cache
def cnn(base: Path) -> RunDir:
    """Fold 0 of the log-Mel network, under attentive statistics."""
    head = "model.head={kind: mlp, pooling: attentive_statistics, hidden: [8]}"
    model = ["model.kind=cnn", "model.channels=[4, 8]", "model.mels=16", head, "train.epochs=1", "train.lr=1e-2"]
    return train(planned(base / "runs", packed_tones(base), *model, *THREE_FOLDS, plain=True), Trial(0, 0))


@functools.cache
def wavlm(base: Path) -> RunDir:
    """Fold 0 of a WavLM, which trains its biases alone."""
    from models.tiny import CONFIGS

    encoder = CONFIGS["wavlm, layer norm"]
    more = ("model.adapter=bitfit", "train.epochs=1", "model.normalize=false", *THREE_FOLDS)
    return train(planned(base / "runs", packed_tones(base), *more, encoder=encoder), Trial(0, 0))


@functools.cache
def sum_of_layers(base: Path) -> RunDir:
    """Fold 0 of a head with norms on a sum of the lowest layer and what enters it."""
    model = ("model.layers=weighted", "model.num_layers=1", "model.head={kind: mlp, hidden: [8], norm: batch, norm_group: 4}")
    lines = ("model.weights=null", f"model.config={wav2vec2()}", *model, "train.epochs=1", "train.lr=1e-2", *THREE_FOLDS)
    return train(planned(base / "runs", packed_tones(base), *lines, plain=True), Trial(0, 0))


@functools.cache
def sums_of_frozen_layers(base: Path) -> RunDir:
    """All three folds of a head on a sum of a frozen encoder's layers, which each fold weights on its own."""
    lines = (f"model.weights={pretrained(base)}", "model.freeze=encoder", "model.layers=weighted", "train.lr=1e-2")
    return train(planned(base / "runs", packed_tones(base), *lines, "train.epochs=1", *THREE_FOLDS, plain=True))


@functools.cache
def lora(base: Path) -> RunDir:
    """Fold 0 of thin matrices beside those of pretrained weights."""
    lines = (f"model.weights={pretrained(base)}", "model.adapter={kind: lora, rank: 2}", "train.lr=1e-2")
    return train(planned(base / "runs", packed_tones(base), *lines, "train.epochs=1", *THREE_FOLDS, plain=True), Trial(0, 0))


RUNS = {
    "fine-tuned": fine_tuned,
    "several tasks": several_tasks,
    "probe": probed,
    "partly frozen Whisper": partly_frozen,
    "acrnn": acrnn,
    "cnn": cnn,
    "wavlm": wavlm,
    "sum of layers": sum_of_layers,
    "sums of frozen layers": sums_of_frozen_layers,
    "lora": lora,
}


def train_all(base: Path) -> Path:
    """Train every run now: a test that captures what is printed cannot, as the watchdog writes to the real streams."""
    for run in RUNS.values():
        run(base)
    return base
