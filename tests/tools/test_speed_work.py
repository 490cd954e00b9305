"""Utilisation is a claim about a machine: the arithmetic that it counts is what transformers' encoders do."""

from __future__ import annotations

import pytest
import torch
from bench.speed.task import FAMILIES, configuration
from bench.speed.work import forward, training
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

SAMPLES = 24_000


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_counts_what_an_operation_counter_counts(family: str) -> None:
    """Forward, where the counter is right; WavLM's gates, which the formula leaves out, are below a hundredth."""
    config = AutoConfig.for_model(**configuration(family, "small"))
    config._attn_implementation = "eager"
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        if config.model_type == "whisper":
            config.max_source_positions = SAMPLES // 320
            WhisperEncoder(config).eval()(torch.empty(1, config.num_mel_bins, SAMPLES // 160))
        else:
            AutoModel.from_config(config).eval()(torch.empty(1, SAMPLES))
    assert sum(forward(config, SAMPLES)) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_frozen_stem_is_run_forward_alone() -> None:
    config = AutoConfig.for_model(**configuration("wav2vec2-base", "real"))
    stem, rest = forward(config, SAMPLES)
    assert training(config, [SAMPLES] * 2, frozen_stem=False) == pytest.approx(6 * (stem + rest))
    assert training(config, [SAMPLES] * 2, frozen_stem=True) == pytest.approx(2 * stem + 6 * rest)
