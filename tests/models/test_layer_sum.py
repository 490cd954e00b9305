"""A learned sum of layers, and an encoder that ends early: what heads see, in every family, packed and from stored features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.tiny import CONFIGS, ENCODERS, OTHER_ENCODERS, batch, clips
from torch.nn import functional as F

from ser_hpc.config.load import load_settings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.encoders.configuration import check_configuration, num_layers
from ser_hpc.models.heads.linear_probe import pool_states
from ser_hpc.models.layer_sum import LayerSum, normalise

WEIGHTED = {name: model.model_copy(update={"layers": "weighted"}) for name, model in (ENCODERS | OTHER_ENCODERS).items()}
SQUEEZED = ("sew", "sew-d")


def test_the_sum_is_of_normalised_frames_weighted_by_a_softmax() -> None:
    torch.manual_seed(0)
    states = [torch.randn(5, 8) * 10**power for power in range(3)]
    layers = LayerSum(3)
    with torch.no_grad():
        layers.weights.copy_(torch.tensor([0.1, -1.0, 2.0]))
    shares = torch.softmax(torch.tensor([0.1, -1.0, 2.0]), 0)
    expected = sum(
        share * (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
        for share, x in zip(shares, states, strict=True)
    )
    torch.testing.assert_close(layers(states), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in WEIGHTED if name not in SQUEEZED])
def test_every_parameter_learns_and_a_clip_knows_nothing_of_its_batch(name: str) -> None:
    model, waves = build_classifier(WEIGHTED[name], 4, seed=3).train(), clips(9000, 7000, 12_001)
    together = model(*batch(waves))["emotion"]
    alone = torch.cat([model(*batch([wave]))["emotion"] for wave in waves])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    together.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.layer_sum.weights.grad.abs().min() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["hubert", "wavlm, layer norm", "whisper"])
def test_heads_learn_the_same_from_stored_features(name: str) -> None:
    """Outputs and gradients in double precision, the weights of layers among them."""
    settings = WEIGHTED[name].model_copy(update={"freeze": "encoder"})
    samples, offsets = batch(clips(4000, 9000, 1500, 6400))
    whole = build_classifier(settings, 4, 7).double().train()
    with torch.no_grad():
        states, lengths = whole.frontend.hidden_states(whole.encoder, samples, offsets)  # type: ignore[attr-defined]
        pooled = pool_states(map(normalise, states), lengths, std=False)
    alone = build_classifier(settings, 4, 7, pooled_width=pooled.shape[1]).double().train()
    ours, theirs = alone(pooled, torch.arange(5))["emotion"], whole(samples, offsets)["emotion"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for logits in (ours, theirs):
        logits.square().sum().backward()
    trained = {name: p for name, p in whole.named_parameters() if p.requires_grad}
    assert trained.keys() == dict(alone.named_parameters()).keys() and "layer_sum.weights" in trained
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(parameter.grad, trained[name].grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "whisper"])
def test_an_encoder_that_ends_early_is_the_lower_part_of_the_whole(name: str, tmp_path: Path) -> None:
    """Loaded from the same weights, in every family of waveforms."""
    whole = build_classifier(ENCODERS[name], 4, seed=3).eval()
    whole.encoder.save_pretrained(tmp_path)  # type: ignore[operator]
    cut = build_classifier(EncoderModel(weights=str(tmp_path), num_layers=1, dropout=0.0, normalize=True), 4, 0).eval()
    assert num_layers(cut.encoder.config) == 1  # type: ignore[arg-type]
    given = batch(clips(9000, 7000))
    (entering, *_), _ = whole.frontend.hidden_states(whole.encoder, *given)  # type: ignore[attr-defined]
    (first, *_), _ = cut.frontend.hidden_states(cut.encoder, *given)  # type: ignore[attr-defined]
    torch.testing.assert_close(first, entering)
    kept = cut.encoder.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in whole.encoder.state_dict().items() if name in kept)
    assert not any(".layers.1." in name for name in kept)


def test_misuse_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"model\.num_layers is 3, but this encoder has 2 layers"):
        check_configuration(EncoderModel(weights=None, config=CONFIGS["hubert"], num_layers=3))
    with pytest.raises(UserError, match=r"model\.freeze_layers is 2, but this encoder has 1 layers"):
        check_configuration(EncoderModel(weights=None, config=CONFIGS["whisper"], num_layers=1, freeze_layers=2))
    with pytest.raises(UserError, match="the layers of sew have fewer frames"):
        check_configuration(WEIGHTED["sew"])
    with pytest.raises(ConfigError, match=r"a probe sees them side by side: use head\.layers"):
        load_settings(None, ["model.freeze=encoder", "model.head=probe", "model.layers=weighted"])


def test_normalising_is_layer_normalisation_in_float32() -> None:
    frames = torch.randn(4, 16, dtype=torch.bfloat16) * 1000
    with torch.autocast("cpu", torch.bfloat16):
        found = normalise(frames)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.layer_norm(frames.float(), (16,)))
