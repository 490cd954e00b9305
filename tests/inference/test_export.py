"""Export: the folder predicts as its run does, in transformers' pipeline too; and no folder that is another's runs anything."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from inference.made import RUNS, fine_tuned, probed, train
from inference.test_predict import lines_of, wavs
from safetensors.torch import load_file, save_file
from small import packed_tones, planned
from transformers import AutoModelForAudioClassification, pipeline

import ser_hpc
import ser_hpc.inference.register  # what the card says
from ser_hpc import export, predict
from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.inference.folder import CONFIG, WEIGHTS
from ser_hpc.results.run_panel import find_panel
from ser_hpc.run.plan import read_plan
from ser_hpc.run.run_dir import RunDir
from ser_hpc.shards import audio

ALONE = ("--fold", "0", "--seed", "0")
FOLDERS: dict[str, tuple[Callable[[Path], RunDir], tuple[str, ...]]] = {
    **{name: (run, ALONE) for name, run in RUNS.items()},
    "ensemble of probes": (probed, ("--ensemble",)),
}


def run_export(*arguments: object) -> int:
    return cli.run_to_exit_code(lambda: export.main([str(each) for each in arguments]))


@pytest.fixture(scope="module")
def folder(base: Path) -> Callable[[str], Path]:
    """Makes the exported folder of each kind, once."""

    def make(kind: str) -> Path:
        out = base / "exported" / kind.replace(" ", "-")
        if not out.exists():
            run, arguments = FOLDERS[kind]
            assert run_export(run(base).path, out, *arguments) == 0
        return out

    return make


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_predicts_as_its_run_and_as_in_transformers(kind: str, base: Path, folder: Callable[[str], Path]) -> None:
    out, (run, arguments) = folder(kind), FOLDERS[kind]
    paths = wavs(base)[::20]
    for calibrated in (True, False):
        whole = ser_hpc.load(run(base).path, fold=None if "--ensemble" in arguments else 0, calibrated=calibrated)
        shipped = ser_hpc.load(out, calibrated=calibrated)
        for ours, theirs in zip(whole.predict(paths), shipped.predict(paths), strict=True):
            assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-5)
            assert theirs.tasks.keys() == ours.tasks.keys()
    classify = pipeline("audio-classification", model=str(out), top_k=None)
    own = kind in ("fine-tuned", "wavlm", "lora")
    assert (type(classify.model).__module__.split(".")[0] == "transformers") == own
    sounds = [audio.decode(path).samples.astype(np.float32) / 32768 for path in paths]
    expected = ser_hpc.load(out).predict(paths)
    for batch_size in (1, 3) if not own or kind == "wavlm" else (1,):
        for found, wanted in zip(classify(sounds, batch_size=batch_size), expected, strict=True):
            assert {each["label"]: each["score"] for each in found} == pytest.approx(wanted.probabilities, abs=1e-5)


def test_a_stranger_loads_it_in_a_process_of_their_own(base: Path, folder: Callable[[str], Path]) -> None:
    """Without this package's import, where the class is transformers' own; with the one import that the card names, else."""
    sound = audio.decode(wavs(base)[0]).samples.astype(np.float32) / 32768
    np.save(base / "sound.npy", sound)
    program = (
        "import sys, numpy\n{}from transformers import pipeline\n"
        "found = pipeline('audio-classification', model=sys.argv[1], top_k=None)(numpy.load(sys.argv[2]))\n"
        "assert ('ser_hpc' in sys.modules) == {}\nprint(found[0]['label'], found[0]['score'])"
    )
    for kind, line in (("fine-tuned", ""), ("probe", "import ser_hpc.inference.register\n")):
        command = [sys.executable, "-c", program.format(line, bool(line)), str(folder(kind)), str(base / "sound.npy")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        label, score = done.stdout.split()
        (wanted,) = ser_hpc.load(folder(kind)).predict(sound)
        assert (label, pytest.approx(float(score), abs=1e-5)) == (wanted.label, wanted.confidence)


def test_what_lies_in_a_folder(base: Path, folder: Callable[[str], Path], tmp_path: Path) -> None:
    out = folder("several tasks")
    assert {path.name for path in out.iterdir()} == {CONFIG, WEIGHTS, "preprocessor_config.json", "README.md"}
    mask = os.umask(0o027)
    try:
        assert run_export(fine_tuned(base).path, tmp_path / "out") == 0
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert list(config["id2label"].values()) == ["angry", "neutral", "sad"] and config["model_type"] == "wav2vec2"
    assert str(base) not in json.dumps(config) and str(base) not in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_what_is_reached_without_listening(base: Path, tmp_path: Path) -> None:
    """Where a report has looked: an export itself computes no panel."""
    run = probed(base)
    assert export.main([str(run.path), str(tmp_path / "before"), "--fold", "0"]) == 0
    panel, reason = find_panel(run, read_plan(run), lambda _: None, compute=True)
    assert panel is not None, reason
    assert export.main([str(run.path), str(tmp_path / "after"), "--fold", "0"]) == 0
    before, after = (ModelCard.load(tmp_path / name / "README.md").text for name in ("before", "after"))
    assert "without listening" in after.lower() and "without listening" not in before.lower()


def test_the_card_says_what_it_is(base: Path, folder: Callable[[str], Path]) -> None:
    card = ModelCard.load(folder("ensemble of probes") / "README.md")
    assert card.data.pipeline_tag == "audio-classification" and card.data.eval_results
    for words in ("pooled over folds", "Annex III", "temperature", "tones", "each clip of the corpus trained most of them"):
        assert words in card.text, words
    assert "missing" in ModelCard.load(folder("fine-tuned") / "README.md").text, "two of three folds are not trained"
    assert "male" in ModelCard.load(folder("several tasks") / "README.md").text


def test_the_best_trial_is_chosen_and_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = probed(base)
    assert run_export(run.path, tmp_path / "best") == 0
    told = capsys.readouterr().out
    scores = [json.loads((run.path / f"seed_0/fold_{fold}/done.json").read_text())["best_dev_uar"] for fold in range(3)]
    assert f"fold {int(np.argmax(scores))}, dev UAR {max(scores):.3f}" in told and "register" in told


def test_what_cannot_be_exported_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("all of it")
    run = fine_tuned(base)
    for words, arguments in {
        "is there already": (run.path, taken),
        "no finished seed 0 fold 1": (run.path, tmp_path / "new", "--fold", 1),
        "not finished": (run.path, tmp_path / "new", "--ensemble"),
        "leave --fold out": (run.path, tmp_path / "new", "--ensemble", "--fold", 0),
        "not a run directory": (tmp_path, tmp_path / "new"),
    }.items():
        assert run_export(*arguments) == 2
        assert words in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"taken"} and (taken / "thesis.txt").read_text() == "all of it"
    taken.joinpath("thesis.txt").unlink()
    assert run_export(run.path, taken) == 0, "an empty folder may be there"


def test_code_from_outside_stays_in_the_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with a head of one's own predicts, by the run's copy of it; no folder is made of it."""
    source = """
from torch import nn
from ser_hpc.config.heads import HeadSettings
from ser_hpc.models.heads.mean_pool import WideLinear
from ser_hpc.models.packed import Packing

class First(HeadSettings):
    def build(self, width, outputs):
        return FirstHead(width, outputs)

class FirstHead(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.classifier = WideLinear(width, outputs)

    def forward(self, frames, lengths):
        return self.classifier(Packing(tuple(lengths.tolist()), frames.device).mean(frames))
"""
    (tmp_path / "first_head.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    run = planned(base / "runs", packed_tones(base), "model.head=first_head:First", "train.epochs=1")
    with capsys.disabled():
        train(run, run.trials()[0])
    (tmp_path / "first_head.py").unlink()
    monkeypatch.delitem(sys.modules, "first_head")
    (found,) = ser_hpc.load(run.path, fold=0).predict(wavs(base)[0])
    assert found.label in ("angry", "neutral", "sad")
    assert run_export(run.path, tmp_path / "out", "--fold", 0) == 2
    assert "first_head:First" in capsys.readouterr().err and not (tmp_path / "out").exists()


# Folders of others.


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def edited(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The configuration with `section__key=value` changed, at any depth."""
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = config
        for section in sections:
            place = place[int(section) if section.isdigit() else section]
        place[key] = value
    return config


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "remote code": ({"auto_map": {"AutoModelForAudioClassification": "evil.Model"}}, "auto_map"),
    "a head from outside": ({"ser_hpc__model__head": {"kind": "evil:Head"}}, "evil:Head"),
    "a model from outside": ({"ser_hpc__model": {"kind": "evil:Model"}}, "evil:Model|of type None"),
    "a target from outside": ({"ser_hpc__tasks__emotion__target__kind": "evil:Target"}, "evil:Target"),
    "weights from elsewhere": ({"ser_hpc__model__weights": "/etc", "ser_hpc__model__config": None}, "elsewhere|of type None"),
    "another family": ({"ser_hpc__model__config__model_type": "bert"}, "bert"),
    "another type": ({"model_type": "bert"}, "bert"),
    "not of this package": ({"ser_hpc": None}, "did not write"),
    "a later format": ({"ser_hpc__format": 99}, "format 99"),
    "no members": ({"ser_hpc__members": []}, "made of 0"),
    "an owner that is not there": ({"ser_hpc__owners": [7]}, "which encoder"),
    "a temperature of nothing": ({"ser_hpc__members__0__calibration__emotion__temperature": 0}, "temperature"),
    "a class more": ({"ser_hpc__tasks__emotion__target__classes": ["angry", "neutral", "sad", "glad"]}, "shape"),
    "a width of its own": ({"ser_hpc__model__config__hidden_size": 64}, "shape"),
    "a layer more": ({"ser_hpc__model__config__num_hidden_layers": 3}, "lacks"),
    "layers without end": ({"ser_hpc__model__config__num_hidden_layers": 100_000}, "more layers"),
    "widths without end": ({"ser_hpc__model__config__hidden_size": 1 << 40}, "size"),
    "a scale that is no number": ({"ser_hpc__max_seconds": "long"}, "damaged"),
    "tasks that are a list": ({"ser_hpc__tasks": [1]}, "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["fine-tuned", "probe"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_configuration_is_refused_in_words(
    case: str, kind: str, base: Path, folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('ran')\n")
    shutil.copytree(folder(kind), tmp_path / "model")
    path = tmp_path / "model" / CONFIG
    changes, words = HOSTILE[case]
    path.write_text(json.dumps(edited(json.loads(path.read_text()), **changes)))
    with pytest.raises(UserError, match=words):
        ser_hpc.load(tmp_path / "model")
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


def test_hostile_weights_are_refused_in_words(base: Path, folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folder("probe"), tmp_path / "model")
    weights = tmp_path / "model" / WEIGHTS
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # not a view of the file
    whole = weights.read_bytes()
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    for content, words in ((bomb, "damaged"), (whole[: len(whole) // 2], "damaged"), (b"", "damaged")):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=words):
            ser_hpc.load(tmp_path / "model")
    save_file(tensors | {"more": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match="holds more"):
        ser_hpc.load(tmp_path / "model")
    weights.unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(UserError, match="pickle"):
        ser_hpc.load(tmp_path / "model")
    with pytest.raises(UserError, match="pickle"):
        AutoModelForAudioClassification.from_pretrained(tmp_path / "model")
    for content in ("", "[]", "{", "[" * 100_000):
        (tmp_path / "model" / CONFIG).write_text(content)
        with pytest.raises(UserError):
            ser_hpc.load(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_the_command_predicts_with_a_folder(
    base: Path, folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = [str(folder("several tasks")), str(wavs(base)[0]), "--format", "jsonl"]
    capsys.readouterr()
    assert cli.run_to_exit_code(lambda: predict.main(arguments)) == 0
    (line,) = lines_of(capsys.readouterr().out)
    assert set(line["tasks"]) == {"gender"}  # type: ignore[call-overload]
    assert cli.run_to_exit_code(lambda: predict.main([*arguments, "--fold", "0"])) == 2
    assert "leave --fold and --seed out" in capsys.readouterr().err
