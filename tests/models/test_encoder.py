"""Encoders compute what transformers' own models compute, and freeze, drop and load as the settings say."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models.tiny import CONFIGS, ENCODERS, batch, clips

from ser_hpc.config.settings import EncoderModel, HeadSettings
from ser_hpc.core.errors import UserError
from ser_hpc.models.classifier import build_classifier

WAVEFORM = [name for name in CONFIGS if name != "whisper"]
CLASSES: dict[str, tuple[str, Any]] = {
    "wav2vec2": ("wav2vec2", transformers.Wav2Vec2ForSequenceClassification),
    "hubert": ("hubert", transformers.HubertForSequenceClassification),
    "wavlm": ("wavlm", transformers.WavLMForSequenceClassification),
    "whisper": ("encoder", transformers.WhisperForAudioClassification),
}


def reference(config: dict[str, Any]) -> tuple[Any, Any]:
    """transformers' classifier and, within it, its encoder."""
    torch.manual_seed(0)
    prefix, family = CLASSES[config["model_type"]]
    shape = transformers.AutoConfig.for_model(**config, num_labels=4, classifier_proj_size=24)
    model = family(shape).eval()
    return model, getattr(model, prefix)


@pytest.mark.parametrize("name", WAVEFORM)
def test_logits_equal_transformers_on_each_clip_alone(name: str) -> None:
    """Normalisation, stem, encoder, pooling and head, against transformers' feature extractor and classification model."""
    theirs, encoder = reference(CONFIGS[name])
    ours = build_classifier(ENCODERS[name].model_copy(update={"head": HeadSettings(projection=24)}), 4, seed=9).eval()
    ours.encoder.load_state_dict({k: v for k, v in encoder.state_dict().items() if k != "masked_spec_embed"})
    ours.head.projector.load_state_dict(theirs.projector.state_dict())
    ours.head.classifier.load_state_dict(theirs.classifier.state_dict())
    extractor, waves = transformers.Wav2Vec2FeatureExtractor(do_normalize=True), clips(12_001, 16_000, 8_123)
    with torch.no_grad():
        logits = ours(*batch(waves))["emotion"]
        for row, wave in zip(logits, waves, strict=True):
            values = extractor(wave.numpy().astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt")
            torch.testing.assert_close(row, theirs(values.input_values).logits[0], rtol=0, atol=1e-5)


def test_whisper_pools_the_encoders_real_frames_only() -> None:
    """transformers pools 30 s of mostly silence; its encoder's states of the clip's own frames are what counts here."""
    theirs, encoder = reference(CONFIGS["whisper"])
    padded = {"head": HeadSettings(projection=24), "whisper_pad_to_30s": True}
    ours = build_classifier(ENCODERS["whisper"].model_copy(update=padded), 4, seed=9).eval()
    ours.encoder.load_state_dict(encoder.state_dict())
    ours.head.projector.load_state_dict(theirs.projector.state_dict())
    ours.head.classifier.load_state_dict(theirs.classifier.state_dict())
    assert ours.max_seconds == 2.0
    (wave,) = clips(12_001)
    extractor = transformers.WhisperFeatureExtractor(chunk_length=2)
    features = extractor(wave.numpy().astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        states = theirs.projector(encoder(features).last_hidden_state)[0, :38]  # ceil(12001 / 320)
        torch.testing.assert_close(ours(*batch([wave]))["emotion"][0], theirs.classifier(states.mean(0)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_frozen_parts_take_no_gradient_work(name: str) -> None:
    """Frozen means free: no graph is recorded in the frozen part, and a wholly frozen encoder runs without dropout."""
    given = batch(clips(12_001, 9_000))
    stem = build_classifier(ENCODERS[name].model_copy(update={"freeze": "feature_encoder"}), 4, 0).train()
    seen: list[bool] = []
    last = stem.encoder.conv2 if name == "whisper" else stem.encoder.feature_extractor
    last.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    stem(*given)["emotion"].sum().backward()
    assert seen == [False] and all(p.grad is None for p in last.parameters())
    assert any(p.grad is not None for p in stem.encoder.parameters())

    settings = ENCODERS[name].model_copy(update={"freeze": "encoder", "dropout": 0.5})
    frozen = build_classifier(settings, 4, 0).train()
    assert frozen.head.training and not any(p.requires_grad for p in frozen.encoder.parameters())
    first, second = frozen(*given)["emotion"], frozen(*given)["emotion"]
    assert torch.equal(first, second) and first.requires_grad


@pytest.mark.parametrize("name", CONFIGS)
def test_dropout_setting_reaches_every_dropout(name: str) -> None:
    """And without it training is deterministic: no layerdrop, no SpecAugment left over from pre-training."""
    given = batch(clips(12_001, 9_000))
    without = build_classifier(ENCODERS[name], 4, 0).train()
    assert torch.equal(without(*given)["emotion"], without(*given)["emotion"])
    dropped = build_classifier(ENCODERS[name].model_copy(update={"dropout": 0.25}), 4, 0).train()
    rates = {m.p for m in dropped.encoder.modules() if isinstance(m, torch.nn.Dropout)}
    rates |= {float(m.dropout) for m in dropped.encoder.modules() if isinstance(getattr(m, "dropout", None), float)}
    assert rates == {0.25}
    assert not torch.equal(dropped(*given)["emotion"], dropped(*given)["emotion"])


def save(config: dict[str, Any], folder: Path, pretraining: bool = False) -> Any:
    """A folder of weights as people have them: a classifier's, or Whisper with its decoder. Returns the encoder."""
    if config["model_type"] == "whisper" and not pretraining:
        model = transformers.WhisperForConditionalGeneration(transformers.AutoConfig.for_model(**config))
        model.save_pretrained(folder)
        return model.get_encoder()
    model, encoder = reference(config)
    model.save_pretrained(folder)
    return encoder


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_of_a_folder_are_loaded_whole(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever model they were saved from, and without a word; the mask embedding alone is left behind."""
    expected = save(CONFIGS[name], tmp_path).state_dict()
    expected.pop("masked_spec_embed", None)
    capfd.readouterr()
    loaded = build_classifier(EncoderModel(weights=str(tmp_path)), 4, 0).encoder.state_dict()
    assert capfd.readouterr() == ("", "")
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_normalisation_follows_the_weights_preprocessor(tmp_path: Path) -> None:
    """wavlm-base was trained on raw amplitudes: normalising its input would be a silent loss."""
    save(CONFIGS["wavlm, group norm"], tmp_path)
    given = batch(clips(12_001))
    settings = EncoderModel(weights=str(tmp_path))
    by_default = build_classifier(settings, 4, 0).eval()(*given)["emotion"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    raw = build_classifier(settings, 4, 0).eval()(*given)["emotion"]
    forced = build_classifier(settings.model_copy(update={"normalize": True}), 4, 0).eval()(*given)["emotion"]
    assert torch.equal(by_default, forced) and not torch.allclose(raw, forced)


class Trap:
    """A pickle that would create a file if it were loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_of_weights_is_never_executed(tmp_path: Path) -> None:
    """Promise 7: old hub weights in .bin only through torch's restricted loader."""
    save(CONFIGS["hubert"], tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UserError, match="cannot be loaded"):
        build_classifier(EncoderModel(weights=str(tmp_path)), 4, 0)
    assert not (tmp_path / "sprung").exists()


def test_weights_that_cannot_be_had_are_named_in_words(tmp_path: Path) -> None:
    """Each mistake that a user makes with weights ends in a UserError that says which."""
    cases: dict[str, EncoderModel] = {"no folder": EncoderModel(weights=str(tmp_path / "gone"))}
    cases["cannot be loaded"] = EncoderModel(weights=str(tmp_path))  # an empty folder

    other = tmp_path / "bert"
    transformers.BertConfig().save_pretrained(other)
    cases["'bert'; use one of wav2vec2, hubert, wavlm, whisper"] = EncoderModel(weights=str(other))

    torn = tmp_path / "torn"
    save(CONFIGS["wav2vec2, group norm"], torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    cases["cannot be loaded .Safetensor"] = EncoderModel(weights=str(torn))

    deeper = tmp_path / "deeper"
    save(CONFIGS["wav2vec2, group norm"], deeper)
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    cases["lacks weights of the encoder"] = EncoderModel(weights=str(deeper))

    cases["model_type is 'gpt2'"] = EncoderModel(weights=None, config={"model_type": "gpt2"})
    cases["has no hiden_size"] = EncoderModel(weights=None, config={"model_type": "hubert", "hiden_size": 8})
    odd = {"model_type": "hubert", "hidden_size": 30, "num_attention_heads": 4}
    cases["divisible"] = EncoderModel(weights=None, config=odd)
    for message, settings in cases.items():
        with pytest.raises(UserError, match=message):
            build_classifier(settings, 4, 0)
