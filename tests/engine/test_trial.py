"""What a trial leaves behind, and how it fails."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from small import packed_tones, planned, run_here

from ser_hpc.config.load import load_settings
from ser_hpc.run import predictions
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.experiment import prepare_experiment, reopen_experiment
from ser_hpc.run.run_dir import RunDir, Trial


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trial")


def clips_tested(run: RunDir) -> Counter[str]:
    return Counter(
        p.utterance_id
        for trial in run.trials()
        for p in predictions.read_predictions(run.trial(trial).current.predictions)
        if p.part == "test"
    )


@pytest.mark.parametrize("ranks", [*(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (1, 2)), 3])
def test_every_clip_is_tested_once_over_the_folds(base: Path, ranks: int) -> None:
    """Fillers and uneven shares among the ranks are never counted: 144 clips, tested once each."""
    more = ("train.epochs=1", "train.budget_seconds=7", "folds.protocol=speaker_groups", "folds.count=3")
    run = planned(base / f"ranks-{ranks}", packed_tones(base), *more)
    assert set(run_here(run, ranks=ranks).values()) == {0}
    metadata = reopen_experiment(run).index.metadata
    assert clips_tested(run) == Counter(metadata.utterance_id.tolist())


def test_a_loss_that_is_not_finite_stops_the_trial_and_names_the_clips(base: Path) -> None:
    run = planned(base / "exploding", packed_tones(base), "train.lr=1e30", "train.clip_norm=null", "train.warmup=0")
    assert run_here(run, Trial(0, 0)) == {Trial(0, 0): 2}
    end = read_end(run.trial(Trial(0, 0)).current)
    assert end.outcome == "failed" and end.step is not None and end.error is not None
    assert "not finite at step" in end.error
    assert any(name in end.error for name in reopen_experiment(run).index.metadata.utterance_id)
    assert not run.trial(Trial(0, 0)).is_done


def test_dev_alone_chooses_the_epoch(base: Path) -> None:
    """The best epoch is the first of the highest dev UAR, and the test part is not scored before the end."""
    run = planned(base / "choice", packed_tones(base), "train.epochs=5")
    place = run.trial(Trial(0, 0))
    assert run_here(run, Trial(0, 0)) == {Trial(0, 0): 0}
    epochs = [json.loads(line) for line in place.current.epochs.read_text().splitlines()]
    uars = [epoch["dev_uar"] for epoch in epochs]
    done = json.loads(place.done.read_text())
    assert done["best_epoch"] == uars.index(max(uars))
    assert all(set(epoch) == {"epoch", "train_loss", "dev_uar", "dev_loss", "best"} for epoch in epochs)


def test_early_stopping_waits_for_its_patience(base: Path) -> None:
    run = planned(base / "patience", packed_tones(base), "train.epochs=30", "train.patience=2", "train.lr=1e-9")
    assert run_here(run, Trial(0, 0)) == {Trial(0, 0): 0}
    done = json.loads(run.trial(Trial(0, 0)).done.read_text())
    assert done["epochs"] == done["best_epoch"] + 3 < 30


def test_what_an_experiment_is_names_its_directory(base: Path) -> None:
    """Another learning rate is another run; another memory budget, place or seed is not."""
    shards = packed_tones(base)
    common = [f"run.root={base}", f"data.shards={shards}"]

    def name(*more: str) -> str:
        return prepare_experiment(load_settings(None, [*common, *more])).run.path.name

    assert name() == name("train.budget_seconds=9", "cluster.partition=gpu", "seeds=4", "train.strategy=zero2")
    others = ("train.lr=1e-4", "folds.protocol=speaker_groups", "model.freeze=feature_encoder")
    assert len({name(), *map(name, others)}) == 4
