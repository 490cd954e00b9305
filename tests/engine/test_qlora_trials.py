"""QLoRA through the loop: ranks and strategies change nothing, a kill changes no bit, checkpoints hold what is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine.test_resume import EVERY_STEP, TRIAL, kill_at_step, lines
from safetensors.torch import load_file
from small import curve, packed_tones, planned, pretrained_wav2vec2, run_here, train_on_ranks

from ser_hpc.run.run_dir import RunDir

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'ser_hpc[qlora]'")
QLORA = ("model.config=null", "model.adapter={kind: qlora, rank: 2, dropout: 0.1}", "train.lr=1e-2", "train.epochs=4")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qlora")


@pytest.fixture(scope="module")
def alone(base: Path) -> RunDir:
    run = made(base, "alone", "train.accumulation=2")
    assert run_here(run, TRIAL) == {TRIAL: 0}
    return run


def made(base: Path, name: str, *more: str) -> RunDir:
    weights = base / "weights" if (base / "weights").exists() else pretrained_wav2vec2(base / "weights")
    return planned(base / name, packed_tones(base), *QLORA, f"model.weights={weights}", EVERY_STEP, *more)


def test_killed_it_goes_on_bit_for_bit(base: Path, alone: RunDir) -> None:
    run = made(base, "killed", "train.accumulation=2")
    trial, whole = run.trial(TRIAL), alone.trial(TRIAL)
    kill_at_step(run, 5)
    saved = load_file(max(trial.current.checkpoints.glob("step_*.safetensors")))
    assert {name.split("/")[1].split(".")[0] for name in saved} == {"encoder", "head"}
    assert all(".lora_" in name for name in saved if "/encoder." in name), "four-bit weights are never saved"
    assert run_here(run, TRIAL) == {TRIAL: 0}
    assert lines(trial.current.steps) == lines(whole.current.steps)
    assert trial.weights.read_bytes() == whole.weights.read_bytes()
    assert trial.current.predictions.read_bytes() == whole.current.predictions.read_bytes()


def test_two_ranks_train_as_one(base: Path, alone: RunDir) -> None:
    """A copy in four bits for each rank: plain data parallelism, ZeRO 1 and 2, and half precision near enough."""
    kinds = {"ddp": 1e-4, "zero1": 1e-4, "zero2": 1e-4}
    runs = {name: made(base, name, "train.accumulation=1", f"train.strategy={name}") for name in kinds}
    runs["bf16"] = made(base, "bf16", "train.accumulation=1", "train.strategy=zero2", "train.precision=bf16")
    train_on_ranks(list(runs.values()), ranks=2)
    assert curve(alone)[-3:].mean() < 0.9 * curve(alone)[:3].mean(), "it learns: a flat curve would prove nothing"
    for name, near in {**kinds, "bf16": 0.05}.items():
        assert np.abs(curve(runs[name]) - curve(alone)).max() < near, name
