"""Stopped at any moment and run again: as if it had never stopped, on as many ranks bit for bit."""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import Started
from safetensors.torch import load_file
from small import packed_tones, planned, run_here, wav2vec2
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

from ser_hpc.core.errors import UserError
from ser_hpc.engine.frozen_params import FrozenParameters
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir

TRIAL = Trial(0, 0)
EVERY_STEP = "train.checkpoint_minutes=0.0001"
TRAINING = ("train.epochs=6", "model.dropout=0.1", "train.ema_decay=0.9", "train.accumulation=2", EVERY_STEP)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def uninterrupted(base: Path) -> TrialDir:
    run = planned(base / "whole", packed_tones(base), *TRAINING)
    assert run_here(run, TRIAL) == {TRIAL: 0}
    return run.trial(TRIAL)


def start(run: RunDir, program: str | None = None) -> Started:
    return Started("ser_hpc.train", ["--run-dir", str(run.path), "--fold", "0"], program=program)


def wait_for_step(trial: TrialDir, step: int, process: Started) -> None:
    """Until a checkpoint of `step` or later is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(path.stem.removeprefix("step_")) >= step for path in trial.current.checkpoints.glob("step_*.json")):
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of step {step} came; exit code {process.poll()}")


def kill_at_step(run: RunDir, step: int) -> None:
    """Start the trial, and kill it once a checkpoint of `step` or later is there."""
    process = start(run)
    wait_for_step(run.trial(TRIAL), step, process)
    process.kill()
    process.wait()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_and_stopped_is_as_uninterrupted(base: Path, uninterrupted: TrialDir) -> None:
    """SIGKILL, then SIGTERM (which saves and exits 75), then to the end: every loss, weight and prediction, bit for bit."""
    run = planned(base / "killed", packed_tones(base), *TRAINING)
    trial = run.trial(TRIAL)
    kill_at_step(run, 5)
    process = start(run)
    wait_for_step(trial, 14, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert json.loads(trial.current.progress.read_text())["state"] == "stopped"
    assert start(run).wait(300) == 0
    assert lines(trial.current.steps) == lines(uninterrupted.current.steps)
    assert lines(trial.current.epochs) == lines(uninterrupted.current.epochs)
    assert trial.weights.read_bytes() == uninterrupted.weights.read_bytes()
    assert trial.current.predictions.read_bytes() == uninterrupted.current.predictions.read_bytes()
    assert list(trial.path.glob("attempt_*/checkpoints/*")) == [trial.weights], "only the best weights are kept"
    assert [read_end(attempt).outcome for attempt in trial.attempts] == ["killed", "stopped", "done"]


# The loss scale of fp16 doubles after every ninth step; where something overflows, the step is left out and the scale halved.
# The scales of a process's steps go to a file of its own.
HALF = """
import os, sys
from pathlib import Path
from torch.amp import GradScaler
from ser_hpc.core import cli as console
from ser_hpc import train
from ser_hpc.engine.distributed import ddp
told = (Path(sys.argv[2]) / f"scales_{os.getpid()}").open("w")
class Scaler(GradScaler):
    def __init__(self, device, enabled, growth_interval):
        super().__init__(device, 2.0**22, enabled=enabled, growth_interval=9)
    def update(self):
        super().update()
        print(self.get_scale(), file=told, flush=True)
ddp.GradScaler = Scaler
console.run_main(train.main)
"""


@pytest.mark.slow
def test_the_loss_scale_of_fp16_goes_on_where_it_stopped(base: Path) -> None:
    """And with it which steps overflow: bit for bit."""
    told = ("train.precision=fp16", "train.epochs=8", EVERY_STEP)
    whole, killed = (planned(base / f"half-{name}", packed_tones(base), *told) for name in ("whole", "killed"))
    assert start(whole, HALF).wait(300) == 0
    process = start(killed, HALF)
    for step in range(18, 40):  # where nothing overflows until the scale is doubled
        wait_for_step(killed.trial(TRIAL), step, process)
        if good_steps(killed) >= 4:
            break
    process.kill()
    process.wait()
    assert good_steps(killed) >= 2, "it would go on much as a new one does"
    last = start(killed, HALF)
    assert last.wait(300) == 0
    (scales,) = (path.read_text().splitlines() for path in whole.path.glob("scales_*"))
    after = (killed.path / f"scales_{last.pid}").read_text().splitlines()
    assert after and after == scales[-len(after) :] and len(set(after)) > 1
    one, other = (run.trial(TRIAL) for run in (whole, killed))
    assert lines(one.current.steps) == lines(other.current.steps)
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert any(line["grad_norm"] is None for line in lines(one.current.steps)), "nothing overflowed"


def good_steps(run: RunDir) -> int:
    """Of the newest checkpoint, which may be replaced by a newer one meanwhile."""
    while True:
        newest = max(run.trial(TRIAL).path.glob("attempt_*/checkpoints/step_*.json"))
        with suppress(FileNotFoundError):
            return int(json.loads(newest.read_text())["good_steps"])


@pytest.mark.slow
def test_goes_on_under_another_strategy_and_passes_over_damage(base: Path, uninterrupted: TrialDir) -> None:
    """Stopped alone, its newest checkpoint damaged, and ended by two ranks under ZeRO 2: the same curves to 1e-4."""
    run = planned(base / "moved", packed_tones(base), *TRAINING)
    trial = run.trial(TRIAL)
    process = start(run)
    wait_for_step(trial, 8, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    newest = max(trial.current.checkpoints.glob("step_*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    run = planned(base / "moved", packed_tones(base), *TRAINING[:3], "train.accumulation=1", "train.strategy=zero2")
    assert run_here(run, TRIAL, ranks=2) == {TRIAL: 0}
    log = (run.jobs / "seed_0-fold_0.log").read_text()
    assert f"checkpoint {newest} is damaged" in log.replace("\n", " ")
    for name, value in (("steps", "loss"), ("epochs", "dev_loss")):  # the latter is of the averaged weights
        ours, whole = ([line[value] for line in lines(getattr(at.current, name))] for at in (trial, uninterrupted))
        assert np.abs(np.subtract(ours, whole)).max() < 1e-4


def test_done_is_done(uninterrupted: TrialDir) -> None:
    """Running a finished trial again changes nothing."""
    run = RunDir(uninterrupted.path.parents[1])
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*")}
    assert run_here(run, TRIAL) == {TRIAL: 0}
    assert before == {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*")}


def test_a_frozen_base_is_not_saved_and_must_not_change(base: Path) -> None:
    """Checkpoints hold the head alone; with another base under it the trial refuses to go on, with the old one it ends."""
    folder = base / "pretrained"
    torch.manual_seed(1)
    model = AutoModel.from_config(AutoConfig.for_model(**wav2vec2()))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    frozen = (f"model.weights={folder}", "model.config=null", "model.freeze=encoder", "train.epochs=30", EVERY_STEP)
    run = planned(base / "frozen", packed_tones(base), *frozen)
    trial = run.trial(TRIAL)
    process = start(run)
    wait_for_step(trial, 3, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    names = load_file(max(trial.current.checkpoints.glob("step_*.safetensors")))
    assert names and not [name for name in names if "/encoder." in name]
    model.base_model.encoder.layers[0].final_layer_norm.bias.data.add_(1e-3)
    model.save_pretrained(folder)
    assert start(run).wait(120) == 2
    assert "was made with other weights than are there now" in str(read_end(trial.current).error)
    with pytest.raises(UserError, match="the frozen weights are not those that this trial began with"):
        FrozenParameters(frozenset(), "now").check("then")  # as a name on the hub, whose files no digest is taken of, would end
    model.base_model.encoder.layers[0].final_layer_norm.bias.data.zero_()
    model.save_pretrained(folder)
    assert start(run).wait(300) == 0
