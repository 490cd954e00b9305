"""Encoders that run by transformers' own forward: its results on each clip alone, whatever a clip is batched with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models.tiny import OTHER_ENCODERS, OTHERS, batch, clips
from torch import Tensor, nn

from ser_hpc.config.settings import TrainSettings
from ser_hpc.core.errors import UserError
from ser_hpc.engine.distributed.build import build_strategy
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.torch_compile import compile_layers
from ser_hpc.models import checkpointing
from ser_hpc.models.classifier import Classifier, build_classifier
from ser_hpc.models.encoders import configuration
from ser_hpc.models.encoders.padded import FixedBatchNorm

LENGTHS = (12_001, 300, 16_000, 8_123, 0, 12_001)
SEW = [name for name in OTHERS if name.startswith("sew")]


@pytest.fixture(params=OTHERS, ids=str)
def classifier(request: pytest.FixtureRequest) -> Classifier:
    """Its logits differ from clip to clip, and its convolutions have biases that would leave traces in the padding."""
    return lively(request.param)


def lively(name: str) -> Classifier:
    model = build_classifier(OTHER_ENCODERS[name], num_classes=4, seed=1)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model


def theirs(name: str, classifier: Classifier) -> Any:
    """transformers' model with these weights, but without what is ours in it."""
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**OTHERS[name]))
    missing, unexpected = model.load_state_dict(classifier.encoder.state_dict(), strict=False)
    assert not unexpected and all("masked_spec_embed" in key or "pos_conv_embed" in key for key in missing)
    return model.eval()


def alone(name: str, wave: Tensor) -> dict[str, Tensor]:
    """What transformers' own extractor makes of a clip."""
    sound = wave.numpy().astype(np.float32) / 32768
    extractor: Any = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    if name == "wav2vec2-bert":
        extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16)
    return dict(extractor(sound, sampling_rate=16_000, return_tensors="pt"))


def real(states: Tensor, given: dict[str, Tensor]) -> Tensor:
    """The frames of a clip, without what the extractor fills a pair of log-Mel frames up with."""
    return states[0, : int(given["attention_mask"].sum())] if "attention_mask" in given else states[0]


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_logits_equal_transformers_on_each_clip_alone(name: str) -> None:
    ours, waves = lively(name).eval(), clips(12_001, 16_000, 8_123)
    model, logits = theirs(name, ours), ours(*batch(waves))["emotion"]
    for row, wave in zip(logits, waves, strict=True):
        frames = real(model(**alone(name, wave)).last_hidden_state, alone(name, wave))
        expected = ours.head.classifier(ours.head.projector(frames).mean(0))  # type: ignore[operator,union-attr]
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5)
    assert (logits[0] - logits[2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in SEW])
@torch.no_grad()
def test_layers_equal_transformers_on_each_clip_alone(name: str) -> None:
    ours, waves = lively(name).eval(), clips(12_001, 16_000, 8_123)
    model = theirs(name, ours)
    states, lengths = ours.frontend.hidden_states(ours.encoder, *batch(waves))  # type: ignore[attr-defined]
    by_clip = [torch.split(state, lengths.tolist()) for state in states]
    for i, wave in enumerate(waves):
        found = model(**alone(name, wave), output_hidden_states=True)
        for layer, state in zip(by_clip, [*found.hidden_states[:-1], found.last_hidden_state], strict=True):
            torch.testing.assert_close(layer[i], real(state, alone(name, wave)), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-10)])
@torch.no_grad()
def test_logits_of_a_clip_do_not_depend_on_its_batch(classifier: Classifier, dtype: torch.dtype, tolerance: float) -> None:
    """Promise 5."""
    model, waves = classifier.to(dtype).eval(), clips(*LENGTHS)
    together = model(*batch(waves))["emotion"]
    by_itself = torch.cat([model(*batch([wave]))["emotion"] for wave in waves])
    torch.testing.assert_close(together, by_itself, rtol=0, atol=tolerance)


def test_gradients_of_a_batch_are_the_sum_of_its_clips(classifier: Classifier) -> None:
    """In training too: the conformer's batch norms keep their statistics, nothing is dropped at random."""
    model, waves = classifier.double().train(), clips(*LENGTHS)
    weights = torch.arange(4.0, dtype=torch.float64)

    def gradients(batches: list[list[Tensor]]) -> dict[str, Tensor]:
        model.zero_grad()
        for part in batches:
            (model(*batch(part))["emotion"].softmax(-1) @ weights).sum().backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None]
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together, summed = gradients([waves]), gradients([[wave] for wave in waves])
    for name in together:
        torch.testing.assert_close(together[name], summed[name], rtol=1e-7, atol=1e-9)
    if checkpointing.is_possible(model):
        checkpointing.enable(model)
        again = gradients([waves])
        assert all(torch.equal(again[name], together[name]) for name in together)
    for module in model.modules():
        if isinstance(module, FixedBatchNorm):
            assert int(module.num_batches_tracked or 0) == 0


def test_a_copy_runs_by_itself(classifier: Classifier) -> None:
    """The search for a memory budget trains a copy: what it notes of its clips must not be seen by the original's hooks."""
    model, given = classifier.eval(), batch(clips(12_001, 8_123))
    with torch.no_grad():
        expected = model(*given)["emotion"]
        other = copy.deepcopy(model)
        other.frontend._own = other.frontend._lengths = None  # type: ignore[attr-defined]
        assert torch.equal(other(*given)["emotion"], expected)
    owners = {id(hook.__self__) for module in other.modules() for hook in module._forward_pre_hooks.values()}  # type: ignore[attr-defined]
    assert owners == {id(other.frontend)} != {id(model.frontend)}


@pytest.mark.parametrize("name", OTHERS)
def test_frozen_parts_take_no_gradient_work(name: str) -> None:
    given, stem = batch(clips(12_001, 9_000)), name != "wav2vec2-bert"
    changes = [{"freeze": "feature_encoder"}] * stem + [{"freeze_layers": 1}] * (name != "sew-d")
    for change in changes:
        model = build_classifier(OTHER_ENCODERS[name].model_copy(update=change), 4, 0).train()
        last = model.encoder.feature_extractor if "freeze" in change else model.encoder.encoder.layers[0]
        needed: list[bool] = []
        last.register_forward_hook(lambda module, inputs, output, needed=needed: needed.append(output.requires_grad))
        model(*given)["emotion"].sum().backward()
        assert needed and not any(needed)
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", OTHERS)
def test_spec_augment_masks_in_training_alone(name: str) -> None:
    change = {"spec_augment": {"time_prob": 0.3, "time_frames": 4, "feature_prob": 0.2, "feature_width": 4}}
    settings = type(OTHER_ENCODERS[name]).model_validate(OTHER_ENCODERS[name].model_dump() | change)
    model, given = build_classifier(settings, 4, 0), batch(clips(12_001, 9_000))
    torch.manual_seed(0)
    first, second = model.train()(*given)["emotion"], model(*given)["emotion"]
    assert not torch.equal(first, second)
    assert torch.equal(model.eval()(*given)["emotion"], model(*given)["emotion"])


@pytest.mark.parametrize("name", OTHERS)
def test_what_can_be_built_is_not_refused(name: str, tmp_path: Path) -> None:
    """Without torch, from a folder; and the plan says where clips run one by one."""
    notes = configuration.check_configuration(OTHER_ENCODERS[name])
    front = build_classifier(OTHER_ENCODERS[name], 4, 0).frontend
    assert bool(notes) != front.padded and all("equal length" in note for note in notes)
    (tmp_path / "config.json").write_text(json.dumps(OTHERS[name]))
    with pytest.raises(UserError, match=r"it has no model\.safetensors"):
        configuration.check_configuration(OTHER_ENCODERS[name].model_copy(update={"weights": str(tmp_path), "config": None}))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("wav2vec2-bert", {"freeze": "feature_encoder"}, "no convolutional one"),
        ("sew-d", {"freeze_layers": 1}, "share their position embeddings"),
        ("data2vec", {"freeze_layers": 3}, "has 2 layers"),
    ],
)
def test_what_cannot_be_frozen_is_refused_in_words(name: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        configuration.check_configuration(OTHER_ENCODERS[name].model_copy(update=change))


def test_what_these_encoders_cannot_do_is_refused_in_words() -> None:
    model = build_classifier(OTHER_ENCODERS["data2vec"], 4, 0)
    with pytest.raises(UserError, match=r"train\.compile .* not of data2vec-audio"):
        compile_layers(model.encoder)
    alone = build_classifier(OTHER_ENCODERS["unispeech, group norm"], 4, 0)
    world = World(0, 1, 0, 1, torch.device("cpu"))
    with pytest.raises(UserError, match="zero3 gathers weights for each call"):
        build_strategy(alone, TrainSettings(strategy="zero3", precision="fp32"), world, None)
    squeezed = build_classifier(OTHER_ENCODERS["sew"], 4, 0)
    with pytest.raises(UserError, match="use its last layer alone"):
        squeezed.frontend.hidden_states(squeezed.encoder, *batch(clips(9_000)))  # type: ignore[attr-defined]
