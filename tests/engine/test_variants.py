"""Every encoder family, pre-trained weights, freezing and half precision: each trains and predicts through the same loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.test_feature_cache import blocks, train
from safetensors.torch import load_file
from small import curve, packed_tones, planned, pretrained_wav2vec2, train_on_ranks
from torch import nn

from ser_hpc.config.settings import TrainSettings
from ser_hpc.core.errors import UserError
from ser_hpc.engine.distributed import build
from ser_hpc.engine.distributed.world import World
from ser_hpc.run import predictions
from ser_hpc.run.run_dir import RunDir, Trial

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STEM = {"conv_dim": [16, 32], "conv_kernel": [20, 16], "conv_stride": [20, 16], "num_feat_extract_layers": 2}
POSITIONS = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "hubert": {"model_type": "hubert", **SMALL, **STEM, **POSITIONS},
    "wavlm": {"model_type": "wavlm", **SMALL, **STEM, **POSITIONS},
    "whisper": {
        "model_type": "whisper",
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 20,
    },
}
FROZEN = ("model.config=null", "model.freeze=encoder", "train.epochs=1")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained model, in a folder."""
    return pretrained_wav2vec2(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> dict[str, RunDir]:
    """One epoch of each variant, on two ranks, where there is no compiler."""
    base = tmp_path_factory.mktemp("variants")
    shards, one = packed_tones(base), "train.epochs=1"
    made = {name: planned(base / name, shards, one, encoder=config) for name, config in ENCODERS.items()}
    pretrained = (f"model.weights={weights}", "model.config=null", one)
    variants = {
        "acrnn": ("model={kind: acrnn, first_channels: 4, channels: 4, layers: 2, linear: 8, cells: 4, mels: 16}", one),
        "stem": (*pretrained, "model.freeze=feature_encoder", "train.strategy=zero1"),
        "encoder": (*pretrained, *FROZEN),
        "encoder-zero3": (*pretrained, *FROZEN, "train.strategy=zero3"),
        "fp32": (one, "train.lr=1e-4"),
        "bf16": (one, "train.lr=1e-4", "train.precision=bf16"),
        "fp16": (one, "train.lr=1e-4", "train.precision=fp16"),
        "bf16-zero2": (one, "train.lr=1e-4", "train.precision=bf16", "train.strategy=zero2"),
    }
    made |= {name: planned_variant(base / name, shards, more) for name, more in variants.items()}
    with pytest.MonkeyPatch.context() as bare:
        bare.setenv("TORCH_EXTENSIONS_DIR", str(base / "extensions"))  # nothing that was compiled before
        bare.setenv("PATH", "/nowhere")
        bare.setenv("CXX", "/nowhere/c++")
        train_on_ranks(list(made.values()), ranks=2)
    return made


def planned_variant(root: Path, shards: Path, more: tuple[str, ...]) -> RunDir:
    return planned(root, shards, *more, plain=more[0].startswith("model={"))


@pytest.mark.parametrize("name", [*ENCODERS, "acrnn", "stem", "encoder", "encoder-zero3", "bf16", "fp16", "bf16-zero2"])
def test_trains_and_predicts(runs: dict[str, RunDir], name: str) -> None:
    place = runs[name].trial(Trial(0, 0))
    assert json.loads(place.done.read_text())["ranks"] == 2
    assert np.isfinite(curve(runs[name])).all()
    found = predictions.read_predictions(place.current.predictions)
    assert len({p.utterance_id for p in found}) == len(found) > 0
    assert all(abs(sum(p.probabilities.values()) - 1) < 1e-4 for p in found)


def test_a_frozen_stem_stays_that_of_the_folder(runs: dict[str, RunDir], weights: Path) -> None:
    """What is frozen is as pre-trained after training, and the rest is not."""
    before = load_file(weights / "model.safetensors")
    after = load_file(runs["stem"].trial(Trial(0, 0)).weights)
    kept = {key: torch.equal(before[key], after[f"encoder.{key}"]) for key in before if f"encoder.{key}" in after}
    stem = {key: same for key, same in kept.items() if key.startswith("feature_extractor.")}
    assert stem and all(stem.values()) and not all(kept.values())


@pytest.mark.parametrize("name", ["encoder", "encoder-zero3"])
def test_a_frozen_encoder_is_not_saved(runs: dict[str, RunDir], name: str) -> None:
    assert {key.partition(".")[0] for key in load_file(runs[name].trial(Trial(0, 0)).weights)} == {"head"}


def test_ranks_share_a_frozen_encoder_and_change_no_bit(runs: dict[str, RunDir], weights: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = planned(tmp_path, packed_tones(weights.parent), *FROZEN, f"model.weights={weights}")
    train(alone)
    torch.set_num_threads(threads)
    assert len(blocks(alone)) == 3
    assert blocks(runs["encoder"]) == blocks(runs["encoder-zero3"]) == blocks(alone)
    assert np.abs(curve(runs["encoder"]) - curve(alone)).max() < 1e-6


@pytest.mark.parametrize("name", ["bf16", "fp16", "bf16-zero2"])
def test_half_precision_follows_the_full_one(runs: dict[str, RunDir], name: str) -> None:
    assert np.abs(curve(runs[name]) - curve(runs["fp32"])).max() < 0.02


def test_what_deepspeed_cannot_do_on_a_cpu_is_refused_in_words() -> None:
    settings = TrainSettings(strategy="zero1", precision="fp16")
    with pytest.raises(UserError, match="no fp16 on a CPU: use"):
        build.build_strategy(nn.Linear(2, 2), settings, World(0, 1, 0, 1, torch.device("cpu")), None)
