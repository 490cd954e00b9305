"""The bench of equal accuracy: its contenders differ in padding alone, and its interval is what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench.accuracy import ENCODERS, LEVEL, build_padded, interval
from models.tiny import batch, clips

from ser_hpc.config.settings import EncoderModel
from ser_hpc.models.classifier import build


@pytest.mark.parametrize("masked", [False, True])
def test_the_padded_contender_differs_by_its_padding_alone(masked: bool) -> None:
    """Clips of one length need no padding: the same logits as packed. Of unlike lengths: others, or nothing was tested."""
    settings = EncoderModel(weights=None, config=ENCODERS["wav2vec2"], dropout=0.0)
    packed, padded = build(settings, 4, seed=1).eval(), build_padded(settings, 4, seed=1, masked=masked).eval()
    alike, unlike = batch(clips(16_000, 16_000)), batch(clips(16_000, 7_000))
    with torch.no_grad():
        torch.testing.assert_close(padded(*alike)["emotion"], packed(*alike)["emotion"], rtol=0, atol=1e-5)
        short = [model(*unlike)["emotion"][1] for model in (padded, packed)]
    assert (short[0] - short[1]).abs().max() > 1e-4


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(0).normal(0.5, 1.0, (2000, 5))
    held = np.mean([found["low"] < 0.5 < found["high"] for found in map(interval, drawn)])
    assert abs(held - LEVEL) < 0.02
