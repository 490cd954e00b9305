"""Training on augmented clips is as exact as on plain ones; damaged clips are counted, and too many of them end it."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from engine.test_resume import EVERY_STEP, TRIAL, lines, start, wait_for_step
from small import packed_tones, planned, run_here

from ser_hpc.engine.trial_data import TrialData, shard_order
from ser_hpc.launchers.plan_screen import reading_note
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.experiment import reopen_experiment
from ser_hpc.run.run_dir import RunDir

AUGMENTED = (
    "data.augment=[{name: AddGaussianNoise, p: 0.5}, {name: TimeStretch, p: 0.3, leave_length_unchanged: false}, {name: Gain}]",
    "model.spec_augment={time_prob: 0.2, time_frames: 3, feature_prob: 0.1, feature_width: 4}",
    "train.epochs=4",
    *("data.order=shards", "data.window_mb=0.3"),
    EVERY_STEP,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data_side")


def windows_of(run: RunDir) -> list[int]:
    experiment = reopen_experiment(run)
    data = TrialData(experiment.index, experiment.tasks, experiment.folds.folds[0])
    order = shard_order(experiment.settings, data)
    assert order is not None
    windows: list[int] = order.windows(data.fold.train.positions, seed=0).tolist()
    return windows


def test_augmented_training_goes_on_as_if_it_had_never_stopped(base: Path) -> None:
    """By a thread, uninterrupted; by a worker process, killed in a window of shards, stopped, and ended: every loss, weight and
    prediction alike."""
    whole = planned(base / "whole", packed_tones(base), *AUGMENTED, "data.workers=0")
    assert run_here(whole, TRIAL) == {TRIAL: 0}
    run = planned(base / "killed", packed_tones(base), *AUGMENTED, "data.workers=1")
    assert len(set(windows_of(whole))) > 1
    trial, expected = run.trial(TRIAL), whole.trial(TRIAL)
    for step, how, code in ((3, signal.SIGKILL, -9), (9, signal.SIGTERM, 75)):
        process = start(run)
        wait_for_step(trial, step, process)
        process.send_signal(how)
        assert process.wait(60) == code
    assert start(run).wait(300) == 0
    assert lines(trial.current.steps) == lines(expected.current.steps)
    assert trial.weights.read_bytes() == expected.weights.read_bytes()
    assert trial.current.predictions.read_bytes() == expected.current.predictions.read_bytes()
    told = json.loads(expected.current.progress.read_text())
    assert told["data_audio_s_per_s"] > 0 and told["model_audio_s_per_s"] > 0
    log = (whole.jobs / "seed_0-fold_0.log").read_text()
    assert "is the wall" in log


def test_the_plan_states_windows_and_memory(base: Path) -> None:
    """As many windows as training has, and their bytes; a part that fits into one says that nothing changes."""
    shards = packed_tones(base)
    small = planned(base / "small", shards, "data.order=shards", "data.window_mb=0.3")
    note, windows = reading_note(reopen_experiment(small)), windows_of(small)
    assert len(set(windows)) > 1
    assert re.search(rf"in {len(set(windows))} windows of \d+ MB at most, each in the memory of a trial's ranks", note), note
    whole = reading_note(reopen_experiment(planned(base / "whole_in_one", shards, "data.order=shards")))
    assert "fits into one window" in whole and "random one" in whole


def damage_two(run: RunDir) -> list[tuple[str, str]]:
    """Change a byte of two training clips of the first fold; their shards and keys."""
    experiment = reopen_experiment(run)
    index, found = experiment.index, []
    for position in experiment.folds.folds[0].train.positions[[3, 17]]:
        tar = index.roots[0] / index.shards[index.shard[position]].path
        assert isinstance(tar, Path)
        content = bytearray(tar.read_bytes())
        content[index.offset[position] + index.size[position] // 2] ^= 1
        tar.write_bytes(content)
        found.append((str(tar), index.key(position)))
    return found


def test_damaged_clips_are_counted_once_by_all_ranks_and_too_many_end_training(base: Path) -> None:
    shards = Path(shutil.copytree(packed_tones(base), base / "damaged"))
    few = planned(base / "few", shards, "train.epochs=2", "data.max_corrupt=0.03")
    damaged = damage_two(few)
    assert run_here(few, TRIAL, ranks=2) == {TRIAL: 0}
    found = lines(few.trial(TRIAL).current.damaged)
    assert sorted((line["shard"], line["clip"]) for line in found) == sorted(damaged)
    assert {line["cause"] for line in found} == {"its bytes are not those that were packed (crc32)"}

    many = planned(base / "many", shards, "train.epochs=2")
    assert run_here(many, TRIAL, ranks=2) == {TRIAL: 2}
    why = read_end(many.trial(TRIAL).current).error
    assert why is not None and "data.max_corrupt=0.001" in why
    assert f"1 in {damaged[0][0]} (its bytes are not those that were packed (crc32))" in why or damaged[1][0] in why
