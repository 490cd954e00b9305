"""Adversaries: what is below their head is pulled the other way, and speakers that no fold trains on are no target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.test_resume import EVERY_STEP, kill_at_step, lines
from models.tiny import ACRNN, CNN, ENCODERS, batch, clips
from safetensors.torch import load_file
from small import curve, packed_tones, planned, run_here, train_on_ranks
from torch import Tensor

from ser_hpc.config.load import load_settings
from ser_hpc.config.losses import CrossEntropySettings
from ser_hpc.config.settings import Model
from ser_hpc.core.errors import ConfigError
from ser_hpc.models.classifier import build_classifier
from ser_hpc.results.cross_validation import cross_validate
from ser_hpc.run.predictions import read_predictions
from ser_hpc.run.run_dir import Trial
from ser_hpc.tasks.targets import ClassTarget
from ser_hpc.tasks.task import Task

TRIAL = Trial(0, 0)
WHO = "tasks.who={kind: classification, column: speaker, reversal: 0.5}"
MODELS = {"hubert": ENCODERS["hubert"], "acrnn": ACRNN, "cnn": CNN}


def task(values: np.ndarray, reversal: float) -> Task:
    return Task("who", ClassTarget(("a", "b", "c")), values, CrossEntropySettings(), reversal=reversal)


@pytest.mark.parametrize("name", MODELS)
def test_the_head_learns_what_the_encoder_unlearns(name: str) -> None:
    """The same outputs; below the head minus so many times the gradient, in the head the gradient; other tasks are let be."""

    def gradients(settings: Model, reversal: float, of: str) -> dict[str, Tensor]:
        model = build_classifier(settings, 4, 3, others=[task(np.zeros(0, np.int64), reversal)]).double().train()
        outputs = model(*batch(clips(9000, 7000, 5000)))[of]
        outputs.log_softmax(-1)[:, 0].sum().backward()
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None} | {"outputs": outputs}

    plain, turned = (gradients(MODELS[name], reversal, "who") for reversal in (0.0, 0.5))
    assert plain.keys() == turned.keys() and any(key.startswith("encoder.") for key in plain)
    for key, gradient in plain.items():
        times = -0.5 if key.startswith("encoder.") else 1.0
        torch.testing.assert_close(turned[key], times * gradient, rtol=1e-9, atol=1e-12)
    for key, gradient in gradients(MODELS[name], 0.0, "emotion").items():
        torch.testing.assert_close(gradients(MODELS[name], 0.5, "emotion")[key], gradient, rtol=0, atol=0)


def test_what_a_fold_does_not_train_on_is_no_target_of_an_adversary() -> None:
    values, train = np.array([0, 1, 2, -1, 1]), np.array([0, 1, 3])
    assert task(values, 0.1).in_fold(train).values.tolist() == [0, 1, -1, -1, 1]
    assert task(values, 0.0).in_fold(train).values.tolist() == values.tolist(), "else it would be scored on less than it hears"


def test_killed_and_shared_out_it_is_the_same_and_not_scored(tmp_path: Path) -> None:
    """Bit for bit after a kill, up to rounding on two ranks; the report has no score of speakers that were never heard."""
    shards, told = packed_tones(tmp_path), (WHO, "model.dropout=0", "train.epochs=1", "train.global_batch=7", EVERY_STEP)
    whole, killed, two = (planned(tmp_path / name, shards, *told) for name in ("whole", "killed", "two"))
    assert run_here(whole, TRIAL) == {TRIAL: 0}
    kill_at_step(killed, 5)
    assert run_here(killed, TRIAL) == {TRIAL: 0}
    train_on_ranks([two], 2)
    one, other = (run.trial(TRIAL) for run in (whole, killed))
    assert one.weights.read_bytes() == other.weights.read_bytes() and lines(one.current.steps) == lines(other.current.steps)
    assert np.abs(curve(two) - curve(whole)).max() < 1e-4
    assert any(key.startswith("task_heads.who_") for key in load_file(one.weights))
    assert {p.tasks["who"]["truth"] for p in read_predictions(one.current.predictions)} == {None}
    plan = json.loads(whole.plan.read_text())
    assert set(plan["tasks"]["who"]["clips"]["test"]) == {0} and min(plan["tasks"]["who"]["clips"]["train"]) > 0
    (scored,) = cross_validate(whole).tasks
    assert scored.num_clips == 0 and np.isnan(scored.mean["uar"])


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["tasks.emotion.reversal=0.1"], r"tasks\.emotion\.reversal makes it a task to unlearn"),
        ([WHO, "train.select_by=who"], r"tasks\.who\.reversal makes it a task to unlearn"),
        ([WHO, "model.freeze=encoder"], "leaves nothing below its head"),
        (["tasks.who={kind: classification, column: speaker, reversal: -1}"], "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_unlearnt_is_refused_in_words(told: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_settings(None, told)
    load_settings(None, [WHO, "model.freeze=encoder", "model.layers=weighted"])
