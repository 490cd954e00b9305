"""A front hands out the frames of every layer, as transformers' `output_hidden_states`, clip by clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models.tiny import CONFIGS, ENCODERS, batch, clips
from torch import Tensor

from ser_hpc.config.heads import ProbeSettings
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.heads.linear_probe import LinearProbe

LENGTHS = (12_001, 16_000, 8_123)
WAVEFORM = [name for name in CONFIGS if name != "whisper"]


def theirs(config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config))
    model = model.get_encoder() if config["model_type"] == "whisper" else model
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"masked_spec_embed"} and not unexpected
    return model.eval()


def expected(outputs: Any) -> list[Tensor]:
    """What enters each layer, and what the encoder returns: where it norms first, transformers' last lacks the last norm."""
    return [*outputs.hidden_states[:-1], outputs.last_hidden_state]


@pytest.mark.parametrize("name", WAVEFORM)
@torch.no_grad()
def test_layers_equal_transformers_on_each_clip_alone(name: str) -> None:
    ours, waves = build_classifier(ENCODERS[name], 4, seed=9).eval(), clips(*LENGTHS)
    model = theirs(CONFIGS[name], ours.encoder.state_dict())
    states, lengths = ours.frontend.hidden_states(ours.encoder, *batch(waves))  # type: ignore[attr-defined]
    ours_by_clip = [torch.split(state, lengths.tolist()) for state in states]
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    for i, wave in enumerate(waves):
        values = extractor(wave.numpy().astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt").input_values
        found = expected(model(values, output_hidden_states=True))
        assert len(found) == len(ours_by_clip) == CONFIGS[name]["num_hidden_layers"] + 1
        for layer, state in zip(ours_by_clip, found, strict=True):
            torch.testing.assert_close(layer[i], state[0], rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_whispers_layers_equal_transformers_on_each_clip_alone() -> None:
    """Padded to its full length, as transformers wants it; the real frames of each."""
    settings, waves = ENCODERS["whisper"].model_copy(update={"whisper_pad_to_30s": True}), clips(*LENGTHS)
    ours = build_classifier(settings, 4, seed=9).eval()
    model = theirs(CONFIGS["whisper"], ours.encoder.state_dict())
    states, lengths = ours.frontend.hidden_states(ours.encoder, *batch(waves))  # type: ignore[attr-defined]
    ours_by_clip = [torch.split(state, lengths.tolist()) for state in states]
    extractor = transformers.WhisperFeatureExtractor(chunk_length=2)
    for i, wave in enumerate(waves):
        mel = extractor(wave.numpy().astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt").input_features
        for layer, state in zip(ours_by_clip, expected(model(mel, output_hidden_states=True)), strict=True):
            torch.testing.assert_close(layer[i], state[0, : len(layer[i])], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_the_last_layer_is_what_the_head_gets(name: str) -> None:
    model, given = build_classifier(ENCODERS[name], 4, seed=9).eval(), batch(clips(*LENGTHS))
    states, lengths = model.frontend.hidden_states(model.encoder, *given)  # type: ignore[attr-defined]
    frames, counts = model.frontend(model.encoder, *given)
    assert torch.equal(list(states)[-1], frames) and torch.equal(lengths, counts)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_a_probe_takes_mean_and_deviation_of_each_clip_in_its_layers(name: str) -> None:
    """In the order of the layers, each mean before its deviation, whatever order the settings name them in."""
    settings, waves = ENCODERS[name].model_copy(update={"freeze": "encoder"}), clips(*LENGTHS)
    head = ProbeSettings(layers=(2, 0), statistics="mean_std")
    model = build_classifier(settings.model_copy(update={"head": head}), 4, seed=9).eval()
    probe = model.head
    assert isinstance(probe, LinearProbe) and probe.layers == (0, 2)
    probe.classifier.weight.data.normal_()
    states, lengths = model.frontend.hidden_states(model.encoder, *batch(waves))  # type: ignore[attr-defined]
    by_clip = [torch.split(state, lengths.tolist()) for number, state in enumerate(states) if number in (0, 2)]
    expected = torch.stack(
        [torch.cat([part for layer in by_clip for part in (layer[i].mean(0), layer[i].std(0, correction=0))]) for i in range(3)]
    )
    torch.testing.assert_close(model(*batch(waves))["emotion"], probe.classify(expected), rtol=1e-5, atol=1e-4)
