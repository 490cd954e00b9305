"""ONNX: the file says what the run says, of clips of every length, in a runtime that knows nothing of torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from documents import ROOT, blocks
from huggingface_hub import ModelCard
from inference.made import acrnn, fine_tuned, partly_frozen, probed, several_tasks, sum_of_layers, wavlm
from models.tiny import CONFIGS

import ser_hpc
from ser_hpc import export
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.inference import onnx_folder
from ser_hpc.inference.ensemble import Ensemble, Heads
from ser_hpc.inference.plain import Plain
from ser_hpc.inference.spec import ModelSpec
from ser_hpc.models.classifier import build_classifier
from ser_hpc.run.run_dir import RunDir
from ser_hpc.tasks.targets import ClassTarget, NumbersTarget

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
CASES: dict[str, tuple[Callable[[Path], RunDir], tuple[str, ...]]] = {
    "several tasks": (several_tasks, ("--fold", "0")),
    "ensemble of probes": (probed, ("--ensemble",)),
    "partly frozen Whisper": (partly_frozen, ("--fold", "0")),
    "wavlm": (wavlm, ("--fold", "0")),
    "sum of layers": (sum_of_layers, ("--fold", "0")),
}
HEADS: dict[str, Any] = {
    "default": {},
    "weighted layers": {"layers": "weighted"},
    "attention": {"head": {"kind": "mlp", "pooling": "attention", "hidden": [8], "norm": "batch", "norm_group": 4}},
    "mean and deviation": {"head": {"kind": "mlp", "pooling": "mean_std", "hidden": [8], "norm": "layer"}},
    "attentive statistics": {"head": {"kind": "mlp", "pooling": "attentive_statistics", "hidden": [8]}},
    "probe by clip": {"head": {"kind": "probe", "normalization": "clip", "layers": [0, 2]}, "freeze": "encoder"},
    "probe": {"head": {"kind": "probe", "statistics": "mean_std", "layers": [0, 2]}, "freeze": "encoder"},
}


def run_export(*arguments: object) -> int:
    return cli.run_to_exit_code(lambda: export.main([str(each) for each in arguments]))


def noise(samples: int, clips: int = 1) -> np.ndarray:
    """Of values that int16 holds, as predict makes of every sound."""
    drawn = np.random.default_rng(samples).standard_normal((clips, samples))
    return (np.rint(drawn * 3000) / 32768).astype(np.float32)


@pytest.mark.parametrize("kind", CASES)
def test_the_file_says_what_the_run_says(kind: str, base: Path, tmp_path: Path) -> None:
    run, arguments = CASES[kind]
    assert run_export(run(base).path, tmp_path / "out", "--onnx", *arguments) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.json", "README.md"}
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    whole = ser_hpc.load(run(base).path, fold=None if "--ensemble" in arguments else 0)
    assert about["classes"] == list(whole.classes) and about["input"]["rate_hz"] == 16_000
    for samples in (399, 7000, 40_000):
        sound = noise(samples)
        found = dict(zip(about["outputs"], session.run(list(about["outputs"]), {"samples": sound}), strict=True))
        (wanted,) = whole.predict(sound[0])
        assert found["emotion"][0] == pytest.approx(list(wanted.probabilities.values()), abs=1e-4)
        for task, values in wanted.tasks.items():
            assert found[task][0] == pytest.approx(list(values.values()), abs=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("head", HEADS)
def test_every_family_and_head_is_the_same_without_packing(family: str, head: str) -> None:
    """Before any exporter has seen it: one sample, less than a frame, the longest clip of all, and more than that."""
    settings = EncoderModel(weights=None, config=CONFIGS[family], **HEADS[head])
    ensemble, plain = packed_and_plain(settings)
    for samples in (1, 300, 6400, 32_000, 40_000):
        sound = torch.from_numpy(noise(samples, 2) * np.float32([[1], [0.01]]))
        wanted = ensemble(sound.flatten(), torch.tensor([0, samples, 2 * samples]))["emotion"].softmax(-1)
        torch.testing.assert_close(plain(sound)[0], wanted, atol=2e-6, rtol=0)


def test_whisper_on_its_whole_window_is_the_same() -> None:
    settings = EncoderModel(weights=None, config=CONFIGS["whisper"], whisper_pad_to_30s=True)
    ensemble, plain = packed_and_plain(settings)
    for samples in (1, 6400, 40_000):
        sound = torch.from_numpy(noise(samples))
        wanted = ensemble(sound.flatten(), torch.tensor([0, samples]))["emotion"].softmax(-1)
        torch.testing.assert_close(plain(sound)[0], wanted, atol=2e-6, rtol=0)


def packed_and_plain(settings: EncoderModel) -> tuple[Ensemble, Plain]:
    """A model whose head has an opinion, in both forms."""
    classifier, target = build_classifier(settings, 3, seed=0), ClassTarget(("a", "b", "c"))
    with torch.no_grad():
        for parameter in classifier.head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    parts = [(classifier.frontend, classifier.encoder)], [Heads.of(classifier, 0, "emotion")]
    ensemble = Ensemble(*parts, {"emotion": target}, [{"emotion": 1.3}])
    return ensemble, Plain(ModelSpec(settings, {"emotion": target}, {}, None, ()), ensemble)


def test_numbers_are_on_their_scale_and_clips_cut_where_training_cut_them() -> None:
    settings = EncoderModel(weights=None, config=CONFIGS["hubert"])
    classifier, target = build_classifier(settings, 1, seed=0), NumbersTarget(("arousal",), 1, 5)
    parts = [(classifier.frontend, classifier.encoder)], [Heads.of(classifier, 0, "arousal")]
    ensemble = Ensemble(*parts, {"arousal": target}, [{}])
    plain = Plain(ModelSpec(settings, {"arousal": target}, {}, 0.5, ()), ensemble)
    sound = torch.from_numpy(noise(20_000))
    wanted = ensemble(sound[:, :8000].flatten(), torch.tensor([0, 8000]))["arousal"]
    torch.testing.assert_close(plain(sound)[0], wanted * 4 + 1, atol=1e-5, rtol=0)


def test_what_has_no_such_form_is_refused_in_words(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so is a file that says something else, or a machine without the packages; nothing is left then."""
    assert run_export(acrnn(base).path, tmp_path / "out", "--onnx", "--fold", 0) == 2
    assert "Wav2Vec2, HuBERT, WavLM and Whisper" in capsys.readouterr().err
    monkeypatch.setattr(onnx_folder, "PARITY", -1.0)
    assert run_export(fine_tuned(base).path, tmp_path / "out", "--onnx", "--fold", 0) == 2
    assert "predicts otherwise" in capsys.readouterr().err
    monkeypatch.setattr(onnx_folder, "_MOST_BYTES", 1000)
    assert run_export(fine_tuned(base).path, tmp_path / "out", "--onnx", "--fold", 0) == 2
    assert "2 GB at most" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run_export(fine_tuned(base).path, tmp_path / "out", "--onnx", "--fold", 0) == 2
    assert "pip install 'ser_hpc[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_example_of_the_page_and_of_the_card_runs_without_torch(base: Path, tmp_path: Path) -> None:
    """In a process of its own, with what is written there; and the folder is told from one that predict takes."""
    assert run_export(fine_tuned(base).path, tmp_path / "model_onnx", "--onnx", "--fold", 0) == 0
    sound = noise(20_000)[0]
    soundfile.write(tmp_path / "talk.wav", sound, 16_000, subtype="FLOAT")
    (tmp_path / "recording.wav").symlink_to(tmp_path / "talk.wav")
    (page,) = [block for block in blocks(ROOT / "docs" / "predicting.md", "python") if "onnxruntime" in block]
    card = ModelCard.load(tmp_path / "model_onnx" / "README.md")
    assert card.data.library_name == "onnx"
    (of_card,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    (wanted,) = ser_hpc.load(fine_tuned(base).path, fold=0).predict(sound)
    for example in (page, of_card.replace('FOLDER = "."', 'FOLDER = "model_onnx"')):
        program = f"{example}\nimport sys\nassert not {{'torch', 'transformers', 'ser_hpc'}} & {{*sys.modules}}"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
        )
        found = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
        assert found == pytest.approx(wanted.probabilities, abs=1e-4)
    with pytest.raises(UserError, match="export without --onnx"):
        ser_hpc.load(tmp_path / "model_onnx")
