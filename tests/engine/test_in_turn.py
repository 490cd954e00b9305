"""Trials that one process trains one after another: each ends in the bits of a trial alone, whatever befalls the others."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.test_data_side import damage_two
from engine.test_feature_cache import CLIPS, base, encoded, frozen, pretrained  # noqa: F401  (fixtures)
from small import packed_tones, wav2vec2

from ser_hpc import train as train_module
from ser_hpc.core.atomic_io import read_json
from ser_hpc.core.errors import UserError
from ser_hpc.engine.fault.preemption import Superseded
from ser_hpc.launchers.detect import Machine
from ser_hpc.launchers.local import LocalJob, log_path, run_trials
from ser_hpc.run.attempt import CANNOT_GO_ON, SUPERSEDED
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.run_dir import AttemptDir, RunDir, Trial, TrialDir
from ser_hpc.train import train, train_in_turn

HEADS = {
    "probe": ("model.head={kind: probe, layers: all, l2: [1, 0.1, 0.01]}",),
    "mlp": ("model.head={kind: mlp, hidden: [8], dropout: 0.3}", "train.ema_decay=0.9", "train.class_weights=balanced"),
    "mean": ("train.precision=fp32", "data.balance=class"),
}
MORE = ("folds.protocol=speaker_groups", "folds.count=3", "seeds=2")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small matrices are not worth a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planned(root: Path, weights: Path, head: str, *more: str, shards: Path | None = None) -> RunDir:
    return frozen(root, weights, *MORE, *HEADS[head], *more, shards=shards)


def same(mine: TrialDir, other: TrialDir) -> None:
    """Everything that a trial leaves, but for times and the numbers of attempts."""
    for name in ("steps", "epochs", "predictions"):
        assert getattr(mine.current, name).read_bytes() == getattr(other.current, name).read_bytes(), name
    assert mine.weights.read_bytes() == other.weights.read_bytes()
    assert sorted(path.name for path in mine.current.path.rglob("*")) == sorted(
        path.name for path in other.current.path.rglob("*")
    )
    timed = {"seconds", "attempt", "weights", "sha256"}
    marker, theirs = ({k: v for k, v in read_json(place.done).items() if k not in timed} for place in (mine, other))
    assert marker == theirs


def alone(run: RunDir, order: Sequence[Trial]) -> None:
    """Each as in a process of its own, with whatever random numbers and settings of torch the process has come to."""
    for number, trial in enumerate(order):
        torch.manual_seed(number), np.random.seed(number)
        torch.set_float32_matmul_precision("high")
        assert train(run, trial) == 0


@pytest.mark.parametrize("head", HEADS)
def test_together_in_any_order_is_as_alone(base: Path, pretrained: Path, head: str, encoded: list[int]) -> None:  # noqa: F811
    together, single = (planned(base / f"{head}-{name}", pretrained, head) for name in ("together", "single"))
    order = random.Random(3).sample(together.trials(), 6)
    assert train_in_turn(together, order) == 0
    assert sum(encoded) == (0 if head == "probe" else CLIPS)  # whose layers are taken in another way
    few = [order[0], order[3], order[5]]
    alone(single, few[::-1])
    for trial in few:
        same(together.trial(trial), single.trial(trial))
    for trial in order:
        current = together.trial(trial).current
        assert read_end(current).outcome == "done" and current.number == 1


def test_an_encoder_drawn_from_the_seed_is_drawn_anew(base: Path, pretrained: Path) -> None:  # noqa: F811
    """Without weights each seed has another encoder: nothing of one may stay for the other."""
    drawn = ("model.weights=null", f"model.config={wav2vec2()}")
    together, single = (planned(base / f"drawn-{name}", pretrained, "mean", *drawn) for name in ("together", "single"))
    order = sorted(together.trials(), key=lambda trial: trial.fold)[:4]  # seeds by turns
    assert train_in_turn(together, order) == 0
    alone(single, order[1:3])
    for trial in order[1:3]:
        same(together.trial(trial), single.trial(trial))


def test_killed_in_the_middle_the_finished_stay_and_the_rest_goes_on(base: Path, pretrained: Path) -> None:  # noqa: F811
    """By the launcher of this machine: SIGKILL in the third of five trials, whose checkpoint the next process goes on from."""
    often = ("train.epochs=20", "train.checkpoint_minutes=0.0001")
    run, single = (planned(base / f"killed-{name}", pretrained, "mlp", *often) for name in ("run", "single"))
    trials, killed = run.trials()[:5], []

    def kill(jobs: Sequence[LocalJob]) -> None:
        third = run.trial(trials[2])
        if not killed and third.attempts and list(third.current.checkpoints.glob("step_*.json")):
            killed.append(jobs[-1].processes[0].pid)
            os.killpg(killed[0], signal.SIGKILL)

    machine = Machine(cores=2, gpus=(), slots=1, ranks=1, threads=torch.get_num_threads())
    assert run_trials(run, trials, machine, kill, per_job=5) == dict.fromkeys(trials, 0)
    attempts = [len(run.trial(trial).attempts) for trial in trials]
    assert len(killed) == 1 and attempts == [1, 1, 2, 1, 1]
    pids = [read_json(run.trial(trial).current.attempt)["pid"] for trial in trials]
    assert len(set(pids)) == 2 and pids[:2] == [pids[0]] * 2 and pids[2:] == [pids[2]] * 3
    alone(single, trials[1:4])
    for trial in trials[1:4]:
        place, log = run.trial(trial), log_path(run, trial)
        assert (place.current.steps.read_bytes(), place.weights.read_bytes()) == (
            single.trial(trial).current.steps.read_bytes(),
            single.trial(trial).weights.read_bytes(),
        )
        assert place.current.predictions.read_bytes() == single.trial(trial).current.predictions.read_bytes()
        assert read_json(place.current.attempt)["log"] == str(log)
        said = [line for line in log.read_text().splitlines() if "begins on" in line]
        assert len(said) == len(place.attempts) and all(line.startswith(f"{trial}: attempt") for line in said)
    assert not [path.name for path in run.jobs.iterdir() if path.name.startswith(".")]


def test_a_mistake_of_one_leaves_the_others_alone(base: Path, pretrained: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    """Damaged clips: folds that test or select on them end, a fold that trains on them does not."""
    shards = base / "damaged-shards"
    shutil.copytree(packed_tones(pretrained.parent), shards)
    run = planned(base / "damaged", pretrained, "probe", "seeds=1", "data.max_corrupt=0.5", shards=shards)
    damage_two(run)  # training clips of the first fold
    assert train_in_turn(run, run.trials()) == CANNOT_GO_ON
    done = {trial.fold: run.trial(trial).is_done for trial in run.trials()}
    assert done[0] and not all(done.values())
    ends = [read_end(run.trial(trial).current) for trial in run.trials()]
    assert {end.outcome for end in ends} == {"done", "failed"} and not any(end.shared for end in ends)
    assert capfd.readouterr().err.count("error: ") == sum(not there for there in done.values())


def test_damage_that_one_met_is_forgotten_once_another_process_could_read_the_clip(
    base: Path,  # noqa: F811
    pretrained: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shards are put in order while the first of two trials trains, and somebody computes the states of them all."""
    whole, shards = packed_tones(pretrained.parent), base / "mended-shards"
    shutil.copytree(whole, shards)
    more = ("seeds=1", "data.max_corrupt=0.5")
    together, single = (
        planned(base / f"mended-{name}", pretrained, "mean", *more, shards=shards) for name in ("run", "single")
    )
    first, second, third = together.trials()
    real = train_module._train_and_record

    def mended_after_the_first(run: RunDir, trial: Trial, *rest: object) -> int:
        code: int = real(run, trial, *rest)  # type: ignore[arg-type]
        if trial == first:
            shutil.copytree(whole, shards, dirs_exist_ok=True)
            assert [train(single, each) for each in (second, third)] == [0, 0]
            shutil.copytree(single.trial(first).feature_cache, run.trial(first).feature_cache, dirs_exist_ok=True)
        return code

    damage_two(together)
    monkeypatch.setattr(train_module, "_train_and_record", mended_after_the_first)
    assert train_in_turn(together, [first, second]) == 0
    assert together.trial(first).current.damaged.exists()
    same(together.trial(second), single.trial(second))


def test_superseded_in_one_the_others_are_left_too(
    base: Path,  # noqa: F811
    pretrained: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process whose launcher was killed must not go before the next launcher's, and begin each trial that comes to it."""
    run = planned(base / "superseded", pretrained, "mean", "seeds=1")
    first, *others = (run.trial(trial) for trial in run.trials())

    def while_another_begins(place: TrialDir, attempt: AttemptDir, *_: object) -> None:
        place.claim()
        raise Superseded("a newer attempt has begun")

    monkeypatch.setattr(train_module, "_trainer", lambda settings: while_another_begins)
    assert train_in_turn(run, run.trials()) == SUPERSEDED
    assert read_end(first.attempt(1)).outcome == "superseded" and not any(place.attempts for place in others)


def test_a_mistake_that_all_share_ends_them(base: Path, pretrained: Path) -> None:  # noqa: F811
    run = planned(base / "shared", pretrained, "mean")
    settings = run.settings.read_text().replace("epochs: 2", "epochs: 3")
    run.settings.write_text(settings)  # not the run's own any more
    assert train_in_turn(run, run.trials()) == CANNOT_GO_ON
    first, *others = (run.trial(trial) for trial in run.trials())
    assert read_end(first.current).shared and not any(place.attempts for place in others)


def test_what_needs_processes_of_its_own_is_refused(base: Path, pretrained: Path) -> None:  # noqa: F811
    for number, more in enumerate(("model.freeze=none", "cluster.trials_per_job=1", "train.strategy=zero1")):
        run = planned(base / f"refused-{number}", pretrained, "mean", more)
        with pytest.raises(UserError, match="one by one, or add --side-by-side"):
            train_in_turn(run, run.trials())
        assert not list(run.path.glob("seed_*"))
