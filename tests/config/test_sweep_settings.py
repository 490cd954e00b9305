"""What a sweep's file says: every mistake at once before anything starts, and the same points whoever asks for them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ser_hpc.config.sweep import Range, SweepSettings, read_sweep
from ser_hpc.core.errors import ConfigError


def problems(tmp_path: Path, *overrides: str, **tree: Any) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError) as found:
        read_sweep(path, None, overrides)
    return str(found.value)


def test_every_mistake_is_said_at_once(tmp_path: Path) -> None:
    """Of the file itself, of settings that there are not, of values that they do not allow, of what cannot be compared."""
    said = problems(
        tmp_path,
        "train.weight_decay=0.2",
        method="grid",
        settings={
            "train.lrr": [1],
            "train.lr": {"min": 1e-2, "max": 1e-4},
            "model.head.projection": [],
            "train.epochs": [3, -1],
            "train.warmup": {"min": 0.1, "max": 2, "points": 3},
            "train.weight_decay": [0, 0.1],
            "cluster.time_min": [10, 20],
            "train.strategy": ["ddp", "zero2"],
            "folds.count": [4, 5],
            "data.labels": ["a", "b"],
        },
    )
    for part in (
        "settings.train.lr: the range is empty",
        "settings.model.head.projection: the list is empty",
        "train.lrr: unknown key; did you mean train.lr?",
        "train.epochs: Input should be greater than or equal to 1; given -1",
        "train.warmup: Input should be less than or equal to 1; given 2",
        "settings.train.weight_decay: it is given on the command line as well",
        "settings.cluster.time_min: it only says where or how a run runs",
        "settings.train.strategy: it only says where or how a run runs",
        "settings.folds.count: other clips, classes or scores",
        "settings.data.labels: other clips, classes or scores",
    ):
        assert part in said
    assert said.startswith("10 mistakes")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"method": "grid", "settings": {}}, "settings is empty"),
        ({"method": "random", "settings": {"train.lr": [1]}}, "configurations is not given"),
        ({"method": "sobol", "settings": {"train.lr": [1]}}, "method: Input should be 'grid', 'random' or 'optuna'"),
        ({"method": "grid", "settings": {"train.lr": {"min": 1, "max": 2}}}, "a grid needs points"),
        ({"method": "grid", "settings": {"train.lr": {"min": 0, "max": 1, "scale": "log", "points": 3}}}, "above zero"),
        ({"method": "grid", "settings": {"train.lr": 3}}, "give a list of values, or a range"),
        ({"method": "grid", "settings": {"train.lr": {"low": 3, "max": 4}}}, "settings.train.lr.low: unknown key"),
        ({"method": "grid", "trials": 3, "settings": {"train.lr": [1]}}, "trials: unknown key"),
    ],
)
def test_what_a_file_must_say(tmp_path: Path, tree: dict[str, Any], said: str) -> None:
    assert said in problems(tmp_path, **tree)


def test_a_grid_is_every_combination_once() -> None:
    sweep = SweepSettings.model_validate(
        {
            "method": "grid",
            "settings": {
                "train.lr": {"min": "1e-4", "max": "1e-2", "scale": "log", "points": 3},  # as YAML gives 1e-4
                "train.epochs": {"min": 10, "max": 30, "step": 10},
                "model.head": [{"kind": "mlp", "hidden": [8]}, "mean_pool"],
            },
        }
    )
    points = list(sweep.points())
    assert sweep.limit == len(points) == 18 and len({str(point) for point in points}) == 18
    assert sorted({point["train.lr"] for point in points}) == [0.0001, 0.001, 0.01]
    assert sorted({point["train.epochs"] for point in points}) == [10, 20, 30]
    assert sweep.point(17) == points[17] and sweep.point(18) is None


@given(seed=st.integers(0, 1000), low=st.floats(1e-6, 1), width=st.floats(0, 1e3), log=st.booleans())
def test_random_points_are_within_their_range_and_stay_the_same(seed: int, low: float, width: float, log: bool) -> None:
    each = {"min": low, "max": low + width, "scale": "log" if log else "linear"}
    sweep = SweepSettings(method="random", configurations=3, seed=seed, settings={"train.lr": Range.model_validate(each)})
    points = [point["train.lr"] for point in islice(sweep.points(), 3)]
    assert points == [point["train.lr"] for point in islice(sweep.points(), 3)]
    assert all(low * (1 - 1e-5) <= value <= (low + width) * (1 + 1e-5) for value in points)


def test_random_points_never_repeat_and_end() -> None:
    settings: dict[str, Any] = {"train.epochs": {"min": 1, "max": 3}, "train.decay": ["linear", "cosine"]}
    sweep = SweepSettings.model_validate({"method": "random", "configurations": 50, "settings": settings})
    points = [tuple(point.values()) for point in sweep.points()]
    assert len(points) == len(set(points)) == 6
