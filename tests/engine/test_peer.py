"""Our loop against a plain PyTorch loop around transformers' own classifier: same weights, order and optimizer, same losses."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from small import packed_tones, planned, wav2vec2
from transformers import AutoConfig, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from ser_hpc.config.load import load_settings
from ser_hpc.data.sampler import epoch_steps, mix_seed
from ser_hpc.engine.distributed import world
from ser_hpc.engine.fault.preemption import StopFlag
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.frozen_encoder import FrozenEncoder
from ser_hpc.engine.loop import train_trial
from ser_hpc.engine.optim import learning_rate
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.models.classifier import build_classifier
from ser_hpc.run.attempt import claim_attempt
from ser_hpc.run.experiment import reopen_experiment
from ser_hpc.run.rank import Rank
from ser_hpc.run.run_dir import Trial
from ser_hpc.shards.read import ShardReader


def test_one_clip_a_batch_trains_as_transformers_does(tmp_path: Path) -> None:
    """To 1e-5 over 50 steps."""
    torch.set_num_threads(1)
    shards = packed_tones(tmp_path)
    run = planned(tmp_path / "runs", shards, "train.epochs=1", "train.global_batch=1", "model.dropout=0.1", "train.lr=5e-4")
    experiment, trial = reopen_experiment(run), Trial(0, 0)
    fold, settings = experiment.folds.folds[0], experiment.settings
    data = TrialData(experiment.index, experiment.tasks, fold)
    alone = Rank(0, 1, 0, 1)
    attempt = claim_attempt(run.trial(trial), alone)
    with StopFlag() as stop, Watchdog(300, lambda: None, exit_code=1) as watchdog:
        ranks = world.join_world(tmp_path, alone, timedelta(minutes=5))
        train_trial(run.trial(trial), attempt, settings, data, ranks, stop, watchdog, FrozenEncoder())
    ours = [json.loads(line)["loss"] for line in run.trial(trial).current.steps.read_text().splitlines()][:50]

    config = AutoConfig.for_model(
        **wav2vec2(),
        num_labels=3,
        classifier_proj_size=16,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        **dict.fromkeys(
            ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout"), 0.1
        ),
    )
    peer = Wav2Vec2ForSequenceClassification(config)
    weights = build_classifier(settings.model, 3, mix_seed(0, 0x57E1)).state_dict()
    renamed = {
        name.replace("encoder.", "wav2vec2.", 1) if name.startswith("encoder.") else name.removeprefix("head."): tensor
        for name, tensor in weights.items()
    }
    missing = peer.load_state_dict(renamed, strict=False)
    assert set(missing.missing_keys) <= {"wav2vec2.masked_spec_embed"}
    assert not missing.unexpected_keys
    peer.train()
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    trained = list(peer.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.train.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.train.lr,
    )
    theirs = []
    with ShardReader(experiment.index) as reader:
        for step, draws in enumerate(epoch_steps(fold.train.positions, 0, 0, 1)[:50]):
            clip = int(draws.positions[0])
            sound = reader.read(clip).astype(np.float32) / 32768
            features = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_values
            torch.manual_seed(mix_seed(0, step, 0))
            loss = peer(features, labels=torch.tensor([int(experiment.targets[clip])])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, len(fold.train.positions), settings.train)
            optimizer.step()
            optimizer.zero_grad()
            theirs.append(loss.item())
    assert len(ours) == 50
    assert np.abs(np.subtract(ours, theirs)).max() < 1e-5


def test_defaults_are_the_settings_of_a_real_fine_tuning() -> None:
    """The default model is a hub name, loaded by transformers; nothing of the demo leaks into it."""
    assert load_settings(None, ["data.shards=x"]).model.weights == "facebook/wav2vec2-base"  # type: ignore[union-attr]
