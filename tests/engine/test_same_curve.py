"""However the work is shared, the same training: one rank, two ranks, every ZeRO stage, with dropout and without."""

from __future__ import annotations

import numpy as np
import pytest
from small import curve, packed_tones, planned, train_on_ranks

from ser_hpc.run import predictions
from ser_hpc.run.run_dir import RunDir, Trial

pytestmark = pytest.mark.slow
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
DROPOUTS = (0.0, 0.1)
SHARDS = ("shards-alone", "shards-ddp")


def scores(run: RunDir) -> dict[tuple[str, str], list[float]]:
    found = predictions.read_predictions(run.trial(Trial(0, 0)).current.predictions)
    return {(p.part, p.utterance_id): list(p.probabilities.values()) for p in found}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, float], RunDir]:
    """1 rank x 8 accumulation steps, and 2 ranks x 4 under every strategy, 50 steps or more each."""
    base = tmp_path_factory.mktemp("curves")
    shards = packed_tones(base)
    common = ("train.epochs=9", "train.global_batch=12", "model.head.dropout=0.1")
    made = {}
    for dropout in DROPOUTS:
        more = (*common[:2], f"model.dropout={dropout}", f"model.head.dropout={dropout}")
        made["alone", dropout] = planned(base / f"alone-{dropout}", shards, *more, "train.accumulation=8")
        for strategy in STRATEGIES:
            root = base / f"{strategy}-{dropout}"
            made[strategy, dropout] = planned(root, shards, *more, "train.accumulation=4", f"train.strategy={strategy}")
    by_shards = (*common[:2], "data.order=shards", "data.window_mb=0.3", "data.balance=speaker", "model.dropout=0")
    for name, accumulation in zip(SHARDS, (8, 4), strict=True):
        made[name, 0.0] = planned(base / name, shards, *by_shards, f"train.accumulation={accumulation}")
    train_on_ranks([*(made["alone", dropout] for dropout in DROPOUTS), made[SHARDS[0], 0.0]], ranks=1)
    shared = [made[strategy, dropout] for strategy in STRATEGIES for dropout in DROPOUTS]
    train_on_ranks([*shared, made[SHARDS[1], 0.0]], ranks=2)
    return made


def test_two_ranks_train_as_one_by_shards(runs: dict[tuple[str, float], RunDir]) -> None:
    """In windows of shards, read ahead: neither order nor reading knows of ranks."""
    alone, shared = (runs[name, 0.0] for name in SHARDS)
    assert np.abs(curve(alone) - curve(shared)).max() < 1e-4
    assert np.abs(curve(alone) - curve(runs["alone", 0.0])[: len(curve(alone))]).max() > 1e-3, "in another order"
    expected, found = scores(alone), scores(shared)
    assert expected.keys() == found.keys()
    assert max(np.abs(np.subtract(expected[clip], found[clip])).max() for clip in expected) < 1e-3


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_as_one(runs: dict[tuple[str, float], RunDir], strategy: str, dropout: float) -> None:
    """The same loss at every step to 1e-4 over 50 steps, and the same predictions."""
    alone, shared = curve(runs["alone", dropout]), curve(runs[strategy, dropout])
    assert len(alone) >= 50
    assert np.abs(alone - shared).max() < 1e-4
    assert alone[-5:].mean() < 0.8 * alone[:5].mean(), "it learns: a flat curve would prove nothing"
    expected, found = scores(runs["alone", dropout]), scores(runs[strategy, dropout])
    assert expected.keys() == found.keys()
    assert max(np.abs(np.subtract(expected[clip], found[clip])).max() for clip in expected) < 1e-3


def test_dropout_was_on(runs: dict[tuple[str, float], RunDir]) -> None:
    assert np.abs(curve(runs["alone", 0.0]) - curve(runs["alone", 0.1])).max() > 1e-3


def test_one_run_directory_whatever_the_strategy(runs: dict[tuple[str, float], RunDir]) -> None:
    """Ranks, strategy and memory budget are no part of what an experiment is."""
    assert len({run.path.name for (_, dropout), run in runs.items() if dropout == 0.1}) == 1
