"""A run's jobs take the folds that were planned and checked at launch, and plan again where they are not there or not those."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import packed_tones, planned

from ser_hpc.core.atomic_io import read_json, seal, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.protocols.folds import FoldPlan
from ser_hpc.run import experiment
from ser_hpc.run.create_run import write_run
from ser_hpc.run.experiment import prepare_experiment, reopen_experiment
from ser_hpc.run.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    shards = packed_tones(tmp_path_factory.getbasetemp(), takes=2)
    return planned(tmp_path, shards, "folds.protocol=speaker_groups", "folds.count=3", "folds.max_per_class=5")


def contents(folds: FoldPlan) -> str:
    """All of a plan, as text: equal if plans are."""
    return json.dumps(asdict(folds), default=lambda array: [str(array.dtype), array.tolist()])


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every planning."""
    calls: list[str] = []
    real = experiment.plan_folds

    def plan(*arguments: Any, **options: Any) -> FoldPlan:
        calls.append("planned")
        return real(*arguments, **options)

    monkeypatch.setattr(experiment, "plan_folds", plan)
    return calls


def test_what_was_planned_at_launch_is_read_and_not_planned_again(run: RunDir, plans: list[str]) -> None:
    opened = reopen_experiment(run)
    assert not plans
    again = prepare_experiment(opened.settings, opened.label_set)
    assert plans and contents(opened.folds) == contents(again.folds) and opened.notes == again.notes
    assert opened.trials == again.trials and opened.identity == again.identity
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    write_run(opened)
    assert {path: path.read_bytes() for path in before} == before


def swapped(run: RunDir) -> None:
    """A test clip and a training clip of a fold change places."""
    sides = np.load(run.folds)
    train, test = np.flatnonzero(sides[0] == 0)[0], np.flatnonzero(sides[0] == 2)[0]
    sides[0, [train, test]] = sides[0, [test, train]]
    np.save(run.folds, sides)


def archived(run: RunDir) -> None:
    sides = np.load(run.folds)
    with run.folds.open("wb") as file:
        np.savez(file, sides=sides)


DAMAGE: dict[str, Callable[[RunDir], object]] = {
    "a run of earlier versions": lambda run: run.folds.unlink(),
    "cut off": lambda run: run.folds.write_bytes(run.folds.read_bytes()[:-1]),
    "empty": lambda run: run.folds.write_bytes(b""),
    "no array": lambda run: run.folds.write_bytes(b"sides" * 99),
    "a pickle": lambda run: np.save(run.folds, np.array([{}], dtype=object)),
    "an archive": archived,
    "a byte of its header": lambda run: run.folds.write_bytes(run.folds.read_bytes().replace(b"}", b"]", 1)),
    "a pipe": lambda run: (run.folds.unlink(), os.mkfifo(run.folds)),
    "a folder": lambda run: (run.folds.unlink(), run.folds.mkdir()),
    "another type": lambda run: np.save(run.folds, np.load(run.folds).astype(np.int16)),
    "fewer folds": lambda run: np.save(run.folds, np.load(run.folds)[1:]),
    "folds in another order": lambda run: np.save(run.folds, np.load(run.folds)[::-1]),
    "two clips exchanged": swapped,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_folds_that_are_not_those_of_the_plan_are_planned_again(run: RunDir, plans: list[str], how: str) -> None:
    before = contents(reopen_experiment(run).folds)
    DAMAGE[how](run)
    assert contents(reopen_experiment(run).folds) == before
    assert plans


def test_folds_and_a_plan_that_were_both_changed_are_refused(run: RunDir) -> None:
    """The plan's digest alone does not make them the run's: what is planned from its settings is compared too, or its seal."""
    swapped(run)
    plan = read_json(run.plan)
    plan.pop("sha256")
    write_json(run.plan, seal(plan | {"folds_digest": "0" * 64}))
    with pytest.raises(UserError, match="its folds differ"):
        reopen_experiment(run)
