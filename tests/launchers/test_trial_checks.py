"""What would make every trial fail is told before any is started: the model, its weights, the step's size, the run's folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from models.tiny import CONFIGS
from small import packed_tones, wav2vec2

from ser_hpc.config.adapters import LoraSettings
from ser_hpc.config.load import load_settings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.errors import UserError
from ser_hpc.launchers import trial_checks
from ser_hpc.models.encoders import configuration
from ser_hpc.run.experiment import prepare_experiment


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_tones(tmp_path_factory.mktemp("ready"), takes=2)


def weights(folder: Path, **changes: Any) -> Path:
    """A folder as weights come in, whose weights nobody could load: a check reads names and first bytes alone."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(wav2vec2() | changes))
    (folder / "model.safetensors").write_bytes(b"not read here")
    return folder


def broken(change: Callable[[Path], None]) -> Callable[[Path], EncoderModel]:
    def make(folder: Path) -> EncoderModel:
        change(weights(folder / "weights"))
        return EncoderModel(weights=str(folder / "weights"))

    return make


def config(**changes: Any) -> Callable[[Path], EncoderModel]:
    return lambda _: EncoderModel(weights=None, config=wav2vec2() | changes)


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")


def one_part(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    (folder / "one.safetensors").write_bytes(b"x")


MISTAKES: dict[str, Callable[[Path], EncoderModel]] = {
    "there is no folder /nowhere/weights": lambda _: EncoderModel(weights="/nowhere/weights"),
    "it has no model.safetensors": broken(lambda folder: (folder / "model.safetensors").unlink()),
    "model.safetensors is empty": broken(emptied),
    "git lfs pull": broken(pointer),
    "parts of the weights are missing, two.safetensors": broken(one_part),
    "the encoder cannot be loaded .*config.json": broken(lambda folder: (folder / "config.json").unlink()),
    "the encoder cannot be loaded .JSONDecodeError": broken(lambda folder: (folder / "config.json").write_text("{")),
    "'bert'; use one of": broken(lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}')),
    "not supported": lambda folder: EncoderModel(weights=str(weights(folder / "w", add_adapter=True))),
    "model_type is 'gpt2'": config(model_type="gpt2"),
    "has no hiden_size": config(hiden_size=8),
    "Field 'hidden_size' expected int": config(hidden_size="32"),
    "33 is not divisible by its 2 attention heads": config(hidden_size=33),
    "not divisible by num_conv_pos_embedding_groups, 5": config(num_conv_pos_embedding_groups=5),
    "feat_extract_norm is 'batch'; use group or layer": config(feat_extract_norm="batch"),
    "num_hidden_layers is 0": config(num_hidden_layers=0),
    "Configuration for convolutional layers is incorrect": config(conv_dim=[16]),
    "numbers from 1": config(conv_stride=[10, 0, 4]),
    "freeze_layers is 3, but this encoder has 2": lambda _: EncoderModel(weights=None, config=wav2vec2(), freeze_layers=3),
    "model.adapter=lora stands in layers": lambda _: EncoderModel(
        weights=None, config=wav2vec2(), freeze_layers=2, adapter=LoraSettings()
    ),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_of_a_model_are_found_without_loading_it(words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        configuration.check_configuration(MISTAKES[words](tmp_path))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_can_be_built_is_not_refused(name: str, tmp_path: Path) -> None:
    assert configuration.check_configuration(EncoderModel(weights=None, config=CONFIGS[name])) == []
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert configuration.check_configuration(EncoderModel(weights=str(tmp_path))) == []


def cached(home: Path, name: str, **files: str) -> None:
    """What `hf download` leaves behind."""
    folder = home / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1234")
    (folder / "snapshots" / "1234").mkdir(parents=True)
    for file, text in files.items():
        (folder / "snapshots" / "1234" / file.replace("__", ".")).write_text(text)


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached: no word goes out. Not cached: refused at once where there is no network, or none is wanted."""
    there = json.dumps(wav2vec2())
    cached(tmp_path, "some/cached", config__json=there, model__safetensors="x")
    cached(tmp_path, "some/half", config__json=there)
    cached(tmp_path, "some/bert", config__json='{"model_type": "bert"}', model__safetensors="x")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert configuration.check_configuration(EncoderModel(weights="some/cached")) == []
    for name, words in (
        ("some/half", "nor can the hub be reached .*hf download some/half"),
        ("some/bert", "'bert'; use one of wav2vec2"),
        ("some/where", "no such folder, .*nor can the hub be reached"),
    ):
        with pytest.raises(UserError, match=words):
            configuration.check_configuration(EncoderModel(weights=name))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        configuration.check_configuration(EncoderModel(weights="some/where"))


def test_the_check_needs_no_torch(tmp_path: Path) -> None:
    """It runs in a process from which torch is kept out."""
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print(sys.modules['torch']))\n"
        "runpy.run_module('ser_hpc.models.encoders.configuration', run_name='__main__')"
    )
    given = EncoderModel(weights=str(weights(tmp_path / "weights"))).model_dump_json()
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ['{"error": null, "notes": []}', "None"]


def test_everything_that_is_wrong_is_told_at_once(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lines = [f"data.shards={shards}", "folds.protocol=speaker_groups", "train.global_batch=1000", "model.weights=/nowhere"]
    experiment = prepare_experiment(load_settings(None, [*lines, f"run.root={tmp_path}/file/runs"]))
    with pytest.raises(UserError) as caught:
        trial_checks.check_trials(experiment)
    for words in ("file is a file", "fold 0 trains on", "no folder /nowhere"):
        assert words in str(caught.value)


def test_a_step_takes_no_more_clips_than_train(shards: Path, tmp_path: Path) -> None:
    """The smallest training part decides, and is named."""
    lines = [f"data.shards={shards}", "folds.protocol=speaker_groups", "model.kind=acrnn", f"run.root={tmp_path}"]
    smallest = min(len(fold.train.positions) for fold in prepare_experiment(load_settings(None, lines)).folds.folds)
    assert trial_checks.check_trials(prepare_experiment(load_settings(None, [*lines, f"train.global_batch={smallest}"]))) == []
    with pytest.raises(UserError, match=f"trains on {smallest} clips; take {smallest} at most"):
        trial_checks.check_trials(prepare_experiment(load_settings(None, [*lines, f"train.global_batch={smallest + 1}"])))


def test_packages_that_trials_would_miss_are_noted(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not refused: trials may run in a container."""
    told = [f"run.root={tmp_path}", f"data.shards={shards}", "model.weights=null", f"model.config={wav2vec2()}"]
    settings = load_settings(None, [*told, "model.adapter.kind=lora", "train.strategy=zero2", "train.global_batch=8"])
    experiment = prepare_experiment(settings)
    assert not any("not installed here" in note for note in trial_checks.check_trials(experiment))
    monkeypatch.setattr(trial_checks, "find_spec", lambda name: None)
    notes = "\n".join(trial_checks.check_trials(experiment))
    assert "model.adapter=lora needs the package peft, which is not installed here: pip install 'ser_hpc[adapters]'" in notes
    assert "train.strategy=zero2 needs the package deepspeed" in notes


@pytest.mark.parametrize("name", ["lr", "head_lr"])
def test_a_slow_head_is_told_the_setting_that_it_has(name: str) -> None:
    settings = load_settings(None, ["model.freeze=encoder", f"train.{name}=1e-5"])
    assert f"a learning rate of 1e-05: try train.{name}=1e-3" in trial_checks._slow_head(settings)[0]
    assert not trial_checks._slow_head(load_settings(None, ["model.freeze=encoder", f"train.{name}=1e-3"]))
