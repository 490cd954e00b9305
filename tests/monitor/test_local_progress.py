"""What is said while trials run here: each line is new and has its time, and what is left is true."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.engine import progress
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.progress import Progress
from ser_hpc.launchers.local import LocalJob
from ser_hpc.monitor import local_progress
from ser_hpc.run.run_dir import RunDir, Trial

TRIAL = Trial(0, 0)


def test_in_a_log_every_line_is_new_and_has_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minutes of starting are one line, not eight."""
    run, clock = RunDir(tmp_path), iter(range(0, 10**6, 5))
    attempt = run.trial(TRIAL).claim()
    job = LocalJob((TRIAL,), 0, [], SimpleNamespace(close=lambda: None), 1.0)  # type: ignore[arg-type]
    monkeypatch.setattr(local_progress.time, "monotonic", lambda: float(next(clock)))
    told = {"state": "training", "epochs": 10, "steps": 100, "seconds_left": 100.0, "updated": 9.0}
    with local_progress.show_progress(run, [TRIAL], cli.make_console()) as look:
        for _ in range(24):
            look([job])
        for step in range(24):
            write_json(attempt.progress, told | {"step": step, "epoch": step // 10, "loss": 1.0 / (1 + step)})
            look([job])
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d  seed 0 fold 0 +\d+%  ", line) for line in lines)
    assert [line.split("%  ")[1] for line in lines][:2] == ["starting", "epoch 1/10  loss 1.000  about 2 min left"]
    assert 6 <= len(lines) <= 9 and "epoch 3/10" in lines[-1]


def test_what_is_left_does_not_count_how_long_it_took_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first step of 100 s (compiling, first reads), the others of 1 s."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    attempt = RunDir(tmp_path).trial(TRIAL).claim()
    write_json(attempt.attempt, {"started": 1.0})
    with Progress(attempt, None, TrainState(), total_steps=100, epochs=10, active=True) as said:
        left = []
        for step in range(1, 21):
            now[0] += 100.0 if step == 1 else 1.0
            said.step(TrainState(step=step), 1.0, 1e-3, 1.0)
            said.write("training", TrainState(step=step))
            left.append(read_json(attempt.progress)["seconds_left"])
    assert left[:3] == [None] * 3
    assert left[3:] == [pytest.approx(100 - step) for step in range(4, 21)]
