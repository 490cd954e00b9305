"""Stopped at any moment and run again: as if it had never stopped, on as many ranks bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small import packed_tones, planned, run_here

from ser_hpc.results.endings import how_it_ended
from ser_hpc.results.run_dir import RunDir, Trial, TrialDir

TRIAL = Trial(0, 0)
TRAINING = (
    "train.epochs=6",
    "model.dropout=0.1",
    "train.average=0.9",
    "train.accumulation=2",
    "train.checkpoint_minutes=0.0001",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def uninterrupted(base: Path) -> TrialDir:
    run = planned(base / "whole", packed_tones(base), *TRAINING)
    assert run_here(run, TRIAL) == {TRIAL: 0}
    return run.trial(TRIAL)


def start(run: RunDir) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ser_hpc.train", "--run-dir", str(run.path), "--fold", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_step(trial: TrialDir, step: int, process: subprocess.Popen[bytes]) -> None:
    """Until a checkpoint of `step` or later is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(path.stem.removeprefix("step_")) >= step for path in trial.current.checkpoints.glob("step_*.json")):
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of step {step} came; exit code {process.poll()}")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(trial: TrialDir) -> Path:
    return trial.path / json.loads(trial.done.read_text())["weights"]


def test_killed_and_stopped_is_as_uninterrupted(base: Path, uninterrupted: TrialDir) -> None:
    """SIGKILL, then SIGTERM (which saves and exits 75), then to the end: every loss, weight and prediction, bit for bit."""
    run = planned(base / "killed", packed_tones(base), *TRAINING)
    trial = run.trial(TRIAL)
    process = start(run)
    wait_for_step(trial, 5, process)
    process.kill()
    process.wait()
    process = start(run)
    wait_for_step(trial, 14, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert json.loads(trial.current.progress.read_text())["state"] == "stopped"
    assert start(run).wait(300) == 0
    assert lines(trial.current.steps) == lines(uninterrupted.current.steps)
    assert lines(trial.current.epochs) == lines(uninterrupted.current.epochs)
    assert weights(trial).read_bytes() == weights(uninterrupted).read_bytes()
    assert trial.current.predictions.read_bytes() == uninterrupted.current.predictions.read_bytes()
    assert list(trial.path.glob("attempt_*/checkpoints/*")) == [weights(trial)], "only the best weights are kept"
    assert [how_it_ended(attempt).how for attempt in trial.attempts] == ["killed", "stopped", "done"]


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
