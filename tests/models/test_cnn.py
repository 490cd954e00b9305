"""The log-Mel CNN: the blocks that it says, over real frames alone, and refusals in words."""

from __future__ import annotations

import pytest
import torch
from models.tiny import CNN, batch, clips
from torch import nn
from torch.nn import functional as F

from ser_hpc.config.load import load_settings
from ser_hpc.config.settings import CnnModel
from ser_hpc.core.errors import ConfigError
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.encoders.cnn import Cnn, MelFrontend
from ser_hpc.models.size import model_size


def test_a_clip_goes_through_plain_blocks() -> None:
    """Conv2d, ReLU and MaxPool2d on each clip alone, and the mean over bands: odd lengths too, and 2^blocks frames at least."""
    network = Cnn(CNN.model_copy(update={"norm": "none"})).double()
    lengths = (41, 8, 17, 24, 9)
    given = torch.randn(sum(lengths), CNN.mels, dtype=torch.float64)
    frames, counts = network(given, torch.tensor(lengths))
    expected = []
    for x in torch.split(given, lengths):
        x = x[None]
        for convolution in network.convolutions:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        expected.append(x.mean(2).T)
    assert counts.tolist() == [len(each) for each in expected] == [5, 1, 2, 3, 1]
    torch.testing.assert_close(frames, torch.cat(expected), rtol=0, atol=1e-12)


def test_a_group_normalises_itself_alike_in_any_order() -> None:
    """In training clips of any lengths touch each other by the group's statistics alone."""
    model, waves = build_classifier(CNN, 4, 0).double().train(), clips(9000, 700, 12_001, 5160, 300)
    logits, turned = (model(*batch(given))["emotion"] for given in (waves, waves[::-1]))
    torch.testing.assert_close(turned.flip(0), logits, rtol=0, atol=1e-12)
    assert (model(*batch(waves[1:]))["emotion"] - logits[1:]).abs().max() > 1e-4, "they do touch each other"


def test_features_do_not_change_with_loudness() -> None:
    (wave,) = clips(16_000)
    front = MelFrontend(CNN)
    seen: list[torch.Tensor] = []

    class Sees(nn.Linear):
        def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            seen.append(features)
            return features, lengths

    for gain in (0.5, 1.0):
        front(Sees(1, 1), gain * wave / 32768, torch.tensor([0, len(wave)]))
    assert seen[1].shape == ((16_000 - 512) // 160 + 1, CNN.mels)
    assert abs(float(seen[1].mean())) < 1e-5
    torch.testing.assert_close(seen[0], seen[1], atol=0.05, rtol=0)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_it_is_counted_to_the_last_parameter(norm: str) -> None:
    """And its operations are those of its convolutions: 184 million a second of audio at the default width."""
    settings = CNN.model_copy(update={"norm": norm})
    built = build_classifier(settings, 4, 0)
    found = model_size(settings, {"emotion": (settings.head, 4)}, 2.0)
    assert found.exact and found.parameters == found.trained == sum(p.numel() for p in built.parameters())
    assert model_size(CnnModel(), {}, 2.0).flops == pytest.approx(184.3e6, rel=0.02)


def test_its_head_is_chosen_and_its_groups_are_kept_together() -> None:
    settings = load_settings(None, ["model.kind=cnn", "model.head.dropout=0.3", "model.norm_group=16"])
    assert settings.model.head.kind == "mlp" and settings.norm_group == ("model.norm", 16)  # type: ignore[union-attr]
    smaller = load_settings(None, ["model.kind=cnn", "model.head={kind: mlp, norm: batch, norm_group: 8}"])
    assert build_classifier(smaller.model, 4, 0).frontend.group == 8
    assert build_classifier(CNN.model_copy(update={"norm_group": 5}), 4, 0).frontend.group == 5


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["model.mels=8"], "mels=8: 4 blocks halve the bands as often; give 16 at least"),
        (["model.channels=[]"], r"model\.channels"),
        (["model.head.kind=probe"], "no kind 'probe'"),
        (["train.accumulation=2"], r"divide clips that model\.norm=batch"),
        (["train.layer_decay=0.9"], "layer_decay is of transformer layers"),
        (["train.compile=true"], "compiles transformer layers"),
    ],
)
def test_what_it_has_not_is_refused_in_words(lines: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_settings(None, ["model.kind=cnn", *lines])
