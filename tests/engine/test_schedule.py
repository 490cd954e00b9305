"""The encoder frozen first and released later, dev evaluated every N steps: whenever a trial is killed, as if it had not been,
alike on any ranks; what is not released does not move, and what is must be reached."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import curve, packed_tones, planned, train_on_ranks
from torch import Tensor, nn

from ser_hpc.config.load import load_settings
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.data.sampler import weights_seed
from ser_hpc.engine import loop
from ser_hpc.engine.distributed.strategy import TrainTensors
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.fault import checkpoint
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.fault.preemption import StopFlag
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.frozen_encoder import FrozenEncoder
from ser_hpc.engine.schedule import Schedule
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.models.classifier import build_for_tasks
from ser_hpc.run.attempt import claim_attempt
from ser_hpc.run.experiment import reopen_experiment
from ser_hpc.run.rank import Rank
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir

TRIAL = Trial(0, 0)
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
EVERY_STEP = "train.checkpoint_minutes=0.0000001"
# Five steps an epoch; two layers: the head alone, the higher layer from step 5 on, the lower from 10, what is below from 15.
GRADUAL = ("train.freeze_epochs=1", "train.unfreeze_layers=1", "train.epochs=4", "model.dropout=0.1", "train.layer_decay=0.7")
CUTS = {
    "two": (2, ()),
    **{f"zero{stage}": (2, (f"train.strategy=zero{stage}",)) for stage in (1, 2, 3)},
}


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schedule")


def train_here(run: RunDir) -> TrialDir:
    """Start the run's first trial in this process, on one thread."""
    experiment, place, threads = reopen_experiment(run), run.trial(TRIAL), torch.get_num_threads()
    torch.set_num_threads(1)
    attempt = claim_attempt(place, Rank(0, 1, 0, 1))
    data = TrialData(experiment.index, experiment.tasks, experiment.folds.folds[0])
    try:
        with StopFlag() as stop, Watchdog(300, lambda: None, exit_code=1) as watchdog:
            loop.train_trial(place, attempt, experiment.settings, data, ALONE, stop, watchdog, FrozenEncoder())
    finally:
        torch.set_num_threads(threads)
    return place


def train_killed_at_every_save(run: RunDir, skip: int = 1) -> TrialDir:
    """Start it again and again, each start being killed with its first save but `skip`."""
    whole = checkpoint._save
    for _ in range(100):
        left = [skip]

        def save(*given: Any, left: list[int] = left) -> None:
            if left[0] < 0:
                raise Killed
            whole(*given)
            left[0] -= 1

        with pytest.MonkeyPatch.context() as killing, suppress(Killed):
            killing.setattr(checkpoint, "_save", save)
            return train_here(run)
    raise AssertionError("it comes no further")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(one: TrialDir, other: TrialDir) -> None:
    for name in ("steps", "epochs"):
        assert lines(getattr(one.current, name)) == lines(getattr(other.current, name))
    assert one.weights.name == other.weights.name and one.weights.read_bytes() == other.weights.read_bytes()
    assert one.current.predictions.read_bytes() == other.current.predictions.read_bytes()


@pytest.mark.parametrize("more", [(), ("train.eval_steps=3", "train.ema_decay=0.9")], ids=["epochs", "steps"])
def test_killed_at_every_save_it_ends_as_uninterrupted(base: Path, more: tuple[str, ...]) -> None:
    """Before, at and after each release, and between an epoch's last step and its evaluation."""
    told = (*GRADUAL, EVERY_STEP, *more)
    whole, killed = (planned(base / f"{name}-{len(more)}", packed_tones(base), *told) for name in ("whole", "killed"))
    one = train_here(whole)
    other = train_killed_at_every_save(killed)
    assert len(one.attempts) == 1 and len(other.attempts) >= 10
    assert len(curve(whole)) == 20
    assert_same(one, other)


def test_what_is_not_released_does_not_move_and_has_no_moments(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a large weight decay, which would show; and each parameter's updates are counted from its own release on."""
    run = planned(base / "still", packed_tones(base), *GRADUAL, EVERY_STEP, "train.weight_decay=0.5")
    saved: dict[int, TrainTensors] = {}
    whole = checkpoint._save

    def save(trial: Any, attempt: Any, state: TrainState, tensors: TrainTensors) -> None:
        saved[state.step] = tensors
        whole(trial, attempt, state, tensors)

    monkeypatch.setattr(checkpoint, "_save", save)
    train_here(run)
    experiment = reopen_experiment(run)
    begun = build_for_tasks(experiment.settings.model, experiment.tasks, weights_seed(0)).state_dict()
    released = {"head.": 0, "encoder.encoder.layers.1.": 5, "encoder.encoder.layer_norm.": 5, "encoder.encoder.layers.0.": 10}
    for name, parameter in begun.items():
        step = next((step for prefix, step in released.items() if name.startswith(prefix)), 15)
        assert torch.equal(saved[max(1, step)].model[name], parameter) == (step > 0), name
        assert not torch.equal(saved[step + 1].model[name], parameter), name
        if step:
            assert name not in saved[step].exp_avg and name in saved[step + 1].exp_avg
        assert saved[20].updates_of(name) == 20 - step
    assert set(saved[5].exp_avg) == {name for name in begun if name.startswith("head.")}


@pytest.fixture(scope="module")
def alone(base: Path) -> dict[str, Tensor]:
    run = planned(base / "alone", packed_tones(base), *GRADUAL, "train.eval_steps=20", "model.dropout=0")
    train_here(run)
    return load_file(run.trial(TRIAL).weights) | {"curve": torch.from_numpy(curve(run))}


@pytest.mark.parametrize("name", ["two", *(pytest.param(name, marks=pytest.mark.slow) for name in CUTS if name != "two")])
def test_the_same_curve_and_weights_on_more_ranks(base: Path, alone: dict[str, Tensor], name: str) -> None:
    ranks, more = CUTS[name]
    told = (*GRADUAL, "train.eval_steps=20", "model.dropout=0", *more)
    other = planned(base / name, packed_tones(base), *told)
    train_on_ranks([other], ranks)
    found = load_file(other.trial(TRIAL).weights)
    assert np.abs(curve(other) - alone["curve"].numpy()).max() < 1e-4
    assert alone.keys() - {"curve"} == found.keys()
    assert max(float((found[key] - alone[key]).abs().max()) for key in found) < 1e-4


def test_what_a_release_does_not_reach_is_named_then(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*given: Any, **named: Any) -> Any:
        model = build_for_tasks(*given, **named)
        model.encoder.unused = nn.Linear(2, 2)  # type: ignore[assignment]
        return model

    monkeypatch.setattr(loop, "build_for_tasks", build)
    run = planned(base / "unused", packed_tones(base), "train.freeze_epochs=1", "train.epochs=3", EVERY_STEP)
    with pytest.raises(UserError, match=r"2 of \d+ trained parameters get no gradient.*: encoder\.unused\.weight"):
        train_here(run)
    assert len(curve(run)) == 5, "the head was trained until then"


def test_dev_is_evaluated_every_so_many_steps(base: Path) -> None:
    run = planned(base / "often", packed_tones(base), "train.epochs=2", "train.eval_steps=3")
    place = train_here(run)
    found = lines(place.current.epochs)
    assert [line["step"] for line in found] == [3, 6, 9, 10] and [line["evaluation"] for line in found] == [0, 1, 2, 3]
    best = max(range(4), key=lambda number: (found[number]["dev_uar"], -number))
    done = json.loads(place.done.read_text())
    assert done["weights"].endswith(f"best_{best:04d}.safetensors") and done["best_dev_uar"] == found[best]["dev_uar"]
    assert done["best_epoch"] == (found[best]["step"] - 1) // 5
    assert [line["best"] for line in found][best] and not any(line["best"] for line in found[best + 1 :])
    assert [line["epoch"] for line in lines(place.current.steps)] == [0] * 5 + [1] * 5
    loss = np.mean(curve(run)[3:6])
    assert found[1]["train_loss"] == pytest.approx(loss, rel=0.1), "since the evaluation before"
    progress = json.loads(place.current.progress.read_text())
    assert (progress["state"], progress["epoch"], progress["step"]) == ("done", 2, 10)


def test_patience_counts_evaluations(base: Path) -> None:
    run = planned(
        base / "patience", packed_tones(base), "train.epochs=9", "train.eval_steps=2", "train.patience=2", "train.lr=1e-9"
    )
    place = train_here(run)
    found = lines(place.current.epochs)
    best = max(number for number, line in enumerate(found) if line["best"])
    assert len(found) == best + 3 and json.loads(place.done.read_text())["steps"] == 2 * len(found) < 45


@pytest.mark.parametrize("eval_steps", [1, 3, 5, 7, 10, 20, 99])
def test_every_step_is_made_once_and_the_last_is_evaluated(eval_steps: int) -> None:
    schedule = Schedule(4, 5, eval_steps)
    step, evaluated = 0, []
    while len(evaluated) < schedule.evaluations:
        until = schedule.next_stop(step, len(evaluated))
        assert step <= until <= (schedule.epoch(step) + 1) * 5, "never across an epoch's end"
        step = until
        if step == schedule.evaluation_step(len(evaluated)):
            evaluated.append(step)
    assert evaluated == sorted({*range(eval_steps, 21, eval_steps), 20})


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("train.freeze_epochs=3", "train.epochs=3"), "would never train the encoder: freeze for fewer epochs, or for good"),
        (("train.freeze_epochs=1", "model.freeze=encoder"), "model.freeze=encoder freezes for good: leave out one"),
        (("train.unfreeze_layers=1", "model.freeze=encoder"), "train.unfreeze_layers releases the encoder, which"),
        (("train.freeze_epochs=1", "model=acrnn"), "model.kind=acrnn learns from nothing: leave it out"),
    ],
)
def test_what_would_release_nothing_is_refused(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_settings(None, list(overrides))
