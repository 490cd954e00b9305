"""The bench of equal accuracy: its contenders differ in padding alone, and its interval is what it says."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.accuracy import ENCODERS, LEVEL, SYSTEMS, interval, run_trial
from models.tiny import batch, clips
from padded import build_padded
from small import packed_tones, planned

from ser_hpc.config.settings import EncoderModel
from ser_hpc.models.classifier import build_classifier
from ser_hpc.results.cross_validation import cross_validate
from ser_hpc.run.run_dir import Trial


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2_layer"])
def test_the_padded_contender_differs_by_its_padding_alone(name: str) -> None:
    """Clips of one length need no padding: the same logits as packed. Of unlike lengths: others, or, where a mask leaves the
    padding out, the same again."""
    settings = EncoderModel(weights=None, config=ENCODERS[name], dropout=0.0)
    packed, padded = build_classifier(settings, 4, seed=1).eval(), build_padded(settings, 4, seed=1).eval()
    alike, unlike = batch(clips(16_000, 16_000)), batch(clips(16_000, 7_000))
    with torch.no_grad():
        torch.testing.assert_close(padded(*alike)["emotion"], packed(*alike)["emotion"], rtol=0, atol=1e-5)
        short = [model(*unlike)["emotion"][1] for model in (padded, packed)]
    assert ((short[0] - short[1]).abs().max() > 1e-4) == (name == "wav2vec2")


@pytest.mark.slow
def test_both_contenders_train(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In processes of their own, as the bench trains them; with the mask of layer norms both end alike."""
    shards, trial = packed_tones(tmp_path_factory.getbasetemp()), Trial(0, 0)
    cut = ["train.lr=1e-3", "train.budget_seconds=20", "folds.count=4"]
    runs = {
        system: planned(tmp_path, shards, f"run.name={system}", *cut, encoder=ENCODERS["wav2vec2_layer"]) for system in SYSTEMS
    }
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for system, run in runs.items():
            pool.submit(run_trial, run.path, trial, "wav2vec2_layer", system).result()
    packed, padded = ({one.trial: one.uar for one in cross_validate(run).trials}[trial] for run in runs.values())
    assert packed == pytest.approx(padded, abs=0.05)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(0).normal(0.5, 1.0, (2000, 5))
    held = np.mean([found["low"] < 0.5 < found["high"] for found in map(interval, drawn)])
    assert abs(held - LEVEL) < 0.02
