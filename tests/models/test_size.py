"""What a plan says of a model before torch is loaded is what the built model has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models.tiny import ACRNN, CONFIGS, ENCODERS, OTHER_ENCODERS

from ser_hpc.config.heads import (
    AttentionPooling,
    AttentiveStatisticsPooling,
    HeadSettings,
    MeanPoolSettings,
    MeanStdPooling,
    MlpSettings,
    ProbeSettings,
)
from ser_hpc.config.settings import EncoderModel
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.size import model_size

HEADS: list[HeadSettings] = [
    MeanPoolSettings(projection=24),
    MlpSettings(),
    MlpSettings(pooling=AttentionPooling(hidden=9), hidden=(16, 8), norm="layer"),
    MlpSettings(pooling=MeanStdPooling(), hidden=(12,), norm="batch"),
    MlpSettings(pooling=AttentiveStatisticsPooling(hidden=9), hidden=(12,)),
    MlpSettings(hidden=()),
    ProbeSettings(),
    ProbeSettings(layers=(0, 2), statistics="mean_std"),
]
PARTS = [
    {"layers": "weighted"},
    {"num_layers": 1, "layers": "weighted"},
    {"freeze": "feature_encoder"},
    {"freeze_layers": 1},
    {"freeze_layers": 2},
    {"freeze": "encoder"},
]


def check(model: EncoderModel) -> None:
    with torch.device("meta"):
        built = build_classifier(model, 4, 0)
    found = model_size(model, {"emotion": (model.head, 4)}, 4.0)
    assert found.exact
    assert found.parameters == sum(p.numel() for p in built.parameters()), (model.config, found)
    assert found.trained == sum(p.numel() for p in built.parameters() if p.requires_grad), (model.config, found)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: " ".join(map(str, parts.values())))
def test_encoders_are_counted_to_the_last_parameter(name: str, parts: dict[str, object]) -> None:
    check(ENCODERS[name].model_copy(update=parts))


SHAPES = [
    ("hubert", {"feat_proj_layer_norm": False}),
    ("wav2vec2, layer norm", {"adapter_attn_dim": 8}),
    ("wav2vec2, group norm", {"adapter_attn_dim": 8}),  # which has none then
    ("wav2vec2, group norm", {"do_stable_layer_norm": True}),
    ("wav2vec2, group norm", {"feat_extract_norm": "layer", "conv_bias": True}),
    ("wav2vec2, group norm", {"conv_dim": [16, 32], "conv_kernel": [10, 8], "conv_stride": [10, 8]}),
    ("wavlm, layer norm", {"num_buckets": 20, "max_bucket_distance": 40}),
]


@pytest.mark.parametrize(("name", "changes"), SHAPES, ids=lambda value: " ".join(value))
def test_what_a_family_may_have_is_counted(name: str, changes: dict[str, object]) -> None:
    for parts in ({}, {"freeze_layers": 1}):
        check(EncoderModel(weights=None, config=CONFIGS[name] | changes, **parts))


def test_whispers_sizes_by_transformers_other_names() -> None:
    config = {"model_type": "whisper", "hidden_size": 48, "num_hidden_layers": 2, "encoder_attention_heads": 2}
    check(EncoderModel(weights=None, config=config))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.kind} {getattr(head, 'norm', '')}")
def test_heads_are_counted_to_the_last_parameter(head: HeadSettings) -> None:
    check(ENCODERS["hubert"].model_copy(update={"head": head, "freeze": "encoder"}))


def test_published_sizes(tmp_path: Path) -> None:
    """wav2vec2-base, 94.4 M without mask embedding and heads; wav2vec2-large; Whisper base's encoder, 20.6 M."""
    heads = {"emotion": (MeanPoolSettings(), 4)}
    assert model_size(EncoderModel(), heads, 4.0).parts["encoder"] == 94_370_944
    large = {
        "model_type": "wav2vec2",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    (tmp_path / "config.json").write_text(json.dumps(large))
    assert model_size(EncoderModel(weights=str(tmp_path)), heads, 4.0).parts["encoder"] == 315_427_968
    base = {"model_type": "whisper", "d_model": 512, "encoder_layers": 6, "encoder_ffn_dim": 2048}
    (tmp_path / "config.json").write_text(json.dumps(base))
    found = model_size(EncoderModel(weights=str(tmp_path)), heads, 4.0)
    assert found.exact and found.parts["encoder"] == 20_590_592


@pytest.mark.parametrize("name", ["openai/whisper-large-v3", "microsoft/wavlm-large", "facebook/hubert-base-ls960"])
def test_a_name_on_the_hub_is_guessed_and_said_to_be(name: str) -> None:
    found = model_size(EncoderModel(weights=name), {"emotion": (MeanPoolSettings(), 4)}, 4.0)
    assert not found.exact
    assert 0.98 < found.parts["encoder"] / {"o": 636_949_760, "m": 315_453_120, "f": 94_370_944}[name[0]] < 1.02


@pytest.mark.parametrize("name", OTHER_ENCODERS)
def test_others_are_an_estimate(name: str) -> None:
    assert not model_size(OTHER_ENCODERS[name], {"emotion": (MeanPoolSettings(), 4)}, 4.0).exact


def test_the_recurrent_network_is_an_estimate() -> None:
    built = build_classifier(ACRNN, 4, 0)
    found = model_size(ACRNN, {}, 2.0)
    assert not found.exact and 0.5 < found.parameters / sum(p.numel() for p in built.parameters()) < 2
