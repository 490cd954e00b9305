"""Layers, norms, learning rates by layer: trained alike however the work is shared, killed and gone on with, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine.test_resume import EVERY_STEP, kill_at_step, lines
from models.tiny import ENCODERS, OTHER_ENCODERS, batch, clips
from safetensors.torch import load_file
from small import curve, packed_tones, planned, run_here, train_on_ranks
from torch import nn

from ser_hpc.config.heads import AttentionPooling, MeanPooling, MlpSettings
from ser_hpc.config.load import load_settings
from ser_hpc.config.settings import EncoderModel, TrainSettings
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.optim import build_optimizer, set_learning_rate
from ser_hpc.engine.reached import ReachedParameters
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.layer_sum import LayerSum
from ser_hpc.run.run_dir import RunDir, Trial

TRIAL = Trial(0, 0)
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
RECIPE = (
    "model.head={kind: mlp, pooling: attentive_statistics, hidden: [16, 8], norm: batch, norm_group: 3}",
    "model.layers=weighted", "train.head_lr=3e-3",
    "train.layer_decay=0.7", "train.optimizer=adam", "train.global_batch=7", "train.epochs=1", "train.lr=1e-3",
)  # fmt: skip
CUTS = {"two": (2, ()), "zero2": (2, ("train.strategy=zero2",)), "zero3": (2, ("train.strategy=zero3",))}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def alone(base: Path) -> RunDir:
    run = planned(base / "alone", packed_tones(base), *RECIPE)
    train_on_ranks([run], 1)
    return run


@pytest.mark.parametrize("name", ["two", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3"))])
def test_the_same_curve_and_weights_on_more_ranks(base: Path, alone: RunDir, name: str) -> None:
    """Groups of batch normalisation, learning rates by layer and the weights of layers know nothing of ranks."""
    ranks, more = CUTS[name]
    other = planned(base / name, packed_tones(base), *RECIPE, *more)
    train_on_ranks([other], ranks)
    assert len(curve(alone)) >= 10 and np.abs(curve(other) - curve(alone)).max() < 1e-4
    expected, found = (load_file(run.trial(TRIAL).weights) for run in (alone, other))
    assert expected.keys() == found.keys() and expected["layer_sum.weights"].abs().min() > 0
    # A bias below batch normalisation, or of scores below a softmax, has no gradient but rounding, which Adam makes steps of;
    # the mean follows it.
    free = {f"head.hidden.{i}.bias" for i in range(2)} | {f"head.norms.{i}.running_mean" for i in range(2)}
    free |= {"head.pooling.score.bias"}
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected.keys() - free) < 1e-5


def test_killed_it_goes_on_bit_for_bit(base: Path) -> None:
    whole, killed = (planned(base / name, packed_tones(base), *RECIPE, EVERY_STEP) for name in ("whole", "killed"))
    assert run_here(whole, TRIAL) == {TRIAL: 0}
    kill_at_step(killed, 7)
    assert run_here(killed, TRIAL) == {TRIAL: 0}
    one, other = (run.trial(TRIAL) for run in (whole, killed))
    assert len(other.attempts) == 2 and lines(one.current.steps) == lines(other.current.steps)
    assert one.weights.read_bytes() == other.weights.read_bytes()


def test_lora_is_killed_and_gone_on_with_and_shared(base: Path) -> None:
    """Its checkpoints hold what is trained alone."""
    told = ("model.adapter={kind: lora, rank: 2}", "model.dropout=0", "train.epochs=1", "train.global_batch=7", EVERY_STEP)
    whole, killed, two = (planned(base / f"lora-{name}", packed_tones(base), *told) for name in ("whole", "killed", "two"))
    assert run_here(whole, TRIAL) == {TRIAL: 0}
    kill_at_step(killed, 7)
    assert run_here(killed, TRIAL) == {TRIAL: 0}
    train_on_ranks([two], 2)
    expected, found, shared = (load_file(run.trial(TRIAL).weights) for run in (whole, killed, two))
    assert all(".lora_" in key for key in expected if key.startswith("encoder.")) and len(expected) > 8
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert np.abs(curve(two) - curve(whole)).max() < 1e-4
    assert max(float((shared[key] - expected[key]).abs().max()) for key in expected) < 1e-4


def rates(model: nn.Module, train: TrainSettings, lr: float) -> dict[str, float]:
    optimizer = build_optimizer(model, train)
    set_learning_rate(optimizer.param_groups, lr)
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters() if p.requires_grad}


# What comes after the layers, and how these are named.
SHAPES = {
    "wav2vec2, layer norm": (("encoder.encoder.layer_norm.",), "encoder.encoder.layers."),
    "hubert": ((), "encoder.encoder.layers."),
    "whisper": (("encoder.layer_norm.",), "encoder.layers."),
    "conformer, relative": (("encoder.encoder.layer_norm.",), "encoder.encoder.layers."),
    "data2vec": ((), "encoder.encoder.layers."),  # whose position embeddings are a stack of `layers`, too
    "sew": (("encoder.encoder.upsample.",), "encoder.encoder.layers."),
    "sew-d": (("encoder.encoder.upsample.",), "encoder.encoder.encoder.layer."),
}


@pytest.mark.parametrize("name", SHAPES)
def test_learning_rates_fall_from_the_head_to_the_lowest_layer(name: str) -> None:
    above, stack = SHAPES[name]
    model = build_classifier((ENCODERS | OTHER_ENCODERS)[name], 4, seed=0)
    model.layer_sum = LayerSum(3)
    found = rates(model, TrainSettings(lr=1e-4, head_lr=1e-3, layer_decay=0.5), 1e-5)  # a tenth, as in warm-up
    assert any(parameter.startswith(f"{stack}1.") for parameter in found)
    for parameter, rate in found.items():
        if not parameter.startswith("encoder."):
            expected = 1e-4
        elif parameter.startswith((f"{stack}1.", *above)):
            expected = 1e-5
        else:
            expected = 0.5e-5 if parameter.startswith(f"{stack}0.") else 0.25e-5
        assert rate == pytest.approx(expected), parameter
    assert set(rates(model, TrainSettings(lr=1e-4), 1e-4).values()) == {1e-4}
    with pytest.raises(ConfigError, match=r"train\.layer_decay is of transformer layers"):
        load_settings(None, ["model=acrnn", "train.layer_decay=0.9"])


def test_what_no_gradient_reaches_is_named_before_it_is_trained() -> None:
    """A head that sees less than what is to be trained: nothing of that would ever change."""
    model = build_classifier(ENCODERS["hubert"], 4, seed=0).train()
    model.unused = nn.Linear(2, 2)  # type: ignore[assignment]
    reached = ReachedParameters(model)
    for waves in (clips(9000), clips(7000, 5000)):  # over a step's micro-batches
        model(*batch(waves))["emotion"].sum().backward()
    with pytest.raises(UserError, match=r"2 of \d+ trained parameters get no gradient.*: unused\.weight, unused\.bias\."):
        reached.check(ALONE)
    reached.check(ALONE)  # once
    whole = build_classifier(ENCODERS["hubert"], 4, seed=0).train()
    reached = ReachedParameters(whole)
    whole(*batch(clips(9000)))["emotion"].sum().backward()
    reached.check(ALONE)


def test_batch_normalisation_keeps_its_clips_together() -> None:
    settings = load_settings(None, ["model.head.kind=mlp", "model.head.norm=batch", "model.head.norm_group=8"])
    assert settings.norm_group == ("model.head.norm", 8)
    assert isinstance(settings.model, EncoderModel)
    tiny = ENCODERS["hubert"].model_copy(update={"head": settings.model.head})
    assert build_classifier(tiny, 4, 0).frontend.group == 8
    assert build_classifier(ENCODERS["hubert"], 4, 0).frontend.group is None
    with pytest.raises(ConfigError, match=r"train.accumulation would divide clips that model.head.norm=batch"):
        load_settings(None, ["model.head.kind=mlp", "model.head.norm=batch", "train.accumulation=2"])
    with pytest.raises(ConfigError, match=r"model.head.norm_group: .*greater than or equal to 2"):
        load_settings(None, ["model.head.kind=mlp", "model.head.norm=batch", "model.head.norm_group=1"])


def test_published_heads_have_as_many_parameters_as_published() -> None:
    """wav2vec2-large with 512-256 and BatchNorm for four classes: 316,087,684 in its source, 1,024 of them a mask embedding
    that nothing uses. Attention of 384 under 512-256-128 with LayerNorm for six classes: 856,199 trained, all else frozen."""

    def count(model: EncoderModel, classes: int) -> tuple[int, int]:
        with torch.device("meta"):
            built = build_classifier(model, classes, 0)
        return sum(p.numel() for p in built.parameters()), sum(p.numel() for p in built.parameters() if p.requires_grad)

    large = {
        "model_type": "wav2vec2", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096,
    }  # fmt: skip
    batch_norm = MlpSettings(pooling=MeanPooling(), hidden=(512, 256), norm="batch")
    assert count(EncoderModel(weights=None, config=large, head=batch_norm), 4)[0] == 316_086_660
    layer_norm = MlpSettings(pooling=AttentionPooling(hidden=384), hidden=(512, 256, 128), norm="layer")
    base = EncoderModel(weights=None, config={"model_type": "wav2vec2"}, freeze="encoder", head=layer_norm)
    everything, trained = count(base, 6)
    assert trained == 856_199 and round(everything / 1e6, 1) == 95.2
