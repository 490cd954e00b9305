"""Adapter folders: PEFT loads them onto transformers' own encoder, `predict` over the base of that digest alone."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from inference.made import THREE_FOLDS, fine_tuned, pretrained, train
from inference.test_predict import wavs
from safetensors.torch import load_file, save_file
from small import packed_tones, planned, pretrained_wav2vec2
from transformers import AutoModel

import ser_hpc
from ser_hpc import export, predict
from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.inference.trials import RunModels
from ser_hpc.run.run_dir import RunDir, Trial

peft = pytest.importorskip("peft", reason="needs PEFT: pip install 'ser_hpc[adapters]'")
KINDS = {"lora": "{kind: lora, rank: 2}", "dora": "{kind: lora, rank: 2, dora: true}", "qlora": "{kind: qlora, rank: 2}"}
FIRST = Trial(0, 0)


@pytest.fixture(scope="module")
def runs(base: Path) -> dict[str, RunDir]:
    """Fold 0 of each kind, the head on a sum of layers."""
    made = {}
    for name, adapter in KINDS.items():
        if name == "qlora":
            pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'ser_hpc[qlora]'")
        lines = (f"model.weights={pretrained(base)}", f"model.adapter={adapter}", "model.layers=weighted", "train.lr=1e-2")
        made[name] = planned(base / name, packed_tones(base), *lines, "train.epochs=1", *THREE_FOLDS, plain=True)
        train(made[name], FIRST)
    drawn = planned(base / "drawn", packed_tones(base), f"model.adapter={KINDS['lora']}", "train.epochs=1", *THREE_FOLDS)
    return made | {"drawn": train(drawn, FIRST), "full": fine_tuned(base)}


def exported(run: RunDir, out: Path) -> Path:
    assert cli.run_to_exit_code(lambda: export.main([str(run.path), str(out), "--fold", "0", "--adapter"])) == 0
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_it_onto_transformers_own_encoder(kind: str, base: Path, runs: dict[str, RunDir], tmp_path: Path) -> None:
    """The same frames, to 1e-5; over four-bit weights those that they stand for."""
    out, run = exported(runs[kind], tmp_path / "out"), RunModels.open(runs[kind])
    encoder = AutoModel.from_pretrained(pretrained(base))
    ours = run.classifier(run.spec([FIRST]), FIRST).encoder
    if kind == "qlora":
        for name, module in ours.named_modules():
            if hasattr(module, "widened"):
                encoder.get_submodule(name.replace(".base_layer", "")).weight.data = module.widened().weight.data
    theirs = peft.PeftModel.from_pretrained(encoder, out).eval()
    sound = torch.randn(1, 9000, generator=torch.Generator().manual_seed(1))
    _, module = run.load([FIRST])
    expected, _ = module.fronts[0](module.encoders[0], (sound[0] * 3000).to(torch.int16), torch.tensor([0, 9000]))
    heard = (sound[0] * 3000).to(torch.int16).float()
    heard = (heard - heard.mean()) / (heard.var(correction=0) + 1e-7 * 32768**2).sqrt()
    with torch.no_grad():
        torch.testing.assert_close(theirs(heard[None]).last_hidden_state[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_predicts_as_its_run_over_its_base_alone(kind: str, base: Path, runs: dict[str, RunDir], tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        out = exported(runs[kind], tmp_path / "out")
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}
    assert all(".lora_" in name for name in load_file(out / "adapter_model.safetensors")), "the encoder is not in it"
    assert not [path.name for path in out.glob("*.*") if str(base) in path.read_text(errors="ignore")], (
        "no place of this machine"
    )
    paths = wavs(base)[::25]
    for calibrated in (True, False):
        whole = ser_hpc.load(runs[kind].path, fold=0, calibrated=calibrated).predict(paths)
        found = ser_hpc.load(out, base=str(pretrained(base)), calibrated=calibrated).predict(paths)
        for ours, theirs in zip(whole, found, strict=True):
            assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-5)
    with pytest.raises(UserError, match="is an adapter over weights: give that encoder"):
        ser_hpc.load(out)
    other = pretrained_wav2vec2(tmp_path / "other")
    tensors = {name: tensor.clone() for name, tensor in load_file(other / "model.safetensors").items()}
    tensors["encoder.layer_norm.bias"] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is not the base that .* was trained over, weights"):
        ser_hpc.load(out, base=str(other))


def test_what_cannot_be_is_refused_in_words(
    base: Path, runs: dict[str, RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(runs["lora"], tmp_path / "out")
    full, drawn = runs["full"], runs["drawn"]
    for arguments, words in (
        ([full.path, tmp_path / "new", "--fold", 0, "--adapter"], "trained no adapter of the kind lora"),
        ([drawn.path, tmp_path / "new", "--fold", 0, "--adapter"], "over random weights"),
        ([runs["lora"].path, tmp_path / "new", "--ensemble", "--adapter"], "leave --ensemble out"),
    ):
        assert cli.run_to_exit_code(lambda a=arguments: export.main([str(each) for each in a])) == 2
        assert words in capsys.readouterr().err
    assert cli.run_to_exit_code(lambda: predict.main([str(full.path), str(wavs(base)[0]), "--base", "x"])) == 2
    assert "leave --base out" in capsys.readouterr().err
    record = json.loads((out / "ser_hpc.json").read_text())
    for changes in ({"adapter": {"kind": "evil:Adapter"}}, {"adapter": None}, {"base": {}}, {"model": 3}, {"encoder": {}}):
        (out / "ser_hpc.json").write_text(json.dumps(record | changes))
        with pytest.raises(UserError, match=r"ser_hpc\.json"):
            ser_hpc.load(out, base=str(pretrained(base)))
