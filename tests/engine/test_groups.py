"""Clips that normalise each other stay together: memory and ranks change nothing of what a model with batch norm learns.

Dropout, masks and warps are on: they are drawn for each micro-batch, which is a group.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.test_resume import EVERY_STEP, kill_at_step, lines
from models.tiny import ACRNN as SMALL
from models.tiny import batch, clips
from safetensors.torch import load_file
from small import curve, packed_tones, planned, run_here, train_on_ranks
from torch import Tensor

from ser_hpc.config.load import load_settings
from ser_hpc.config.settings import TrainSettings
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.data.batches import collate
from ser_hpc.data.sampler import BatchSpec, ClipSelection, assign_to_ranks, split_micro_batches
from ser_hpc.engine.distributed.ddp import DdpStrategy
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.objective import Objective
from ser_hpc.engine.step import accumulate_gradients
from ser_hpc.models.classifier import Classifier, build_classifier
from ser_hpc.models.norms import RunningStatistics
from ser_hpc.run import experiment
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.tasks.task import ClipTargets, Task

TRIAL = Trial(0, 0)
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
LENGTHS = (9000, 700, 12_001, 5000, 16_000, 8123, 300, 7000, 11_000, 4000)
ACRNN = (
    "model={kind: acrnn, first_channels: 4, channels: 4, layers: 3, linear: 8, cells: 4, mels: 16, dropout: 0.2, norm_group: 5,"
    "time_warp: 0.1, filter_db: 3, time_mask_s: 0.05}"
)
CNN = (
    "model={kind: cnn, channels: [4, 8], mels: 16, norm_group: 5, head: {kind: mlp, pooling: attentive_statistics, hidden: [8],"
    "dropout: 0.2}}"
)
# Steps of 16 clips are four groups of 4, an epoch's last one of 8 is two: of three ranks, some have none.
CUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "alone": (1, ()),
    "little": (1, ("train.budget_seconds=5",)),
    "two": (2, ()),
    "three": (3, ()),
    "zero2": (2, ("train.strategy=zero2",)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("groups")


@pytest.fixture(scope="module")
def alone(base: Path) -> RunDir:
    return trained(base, "alone")


def trained(base: Path, name: str) -> RunDir:
    ranks, more = CUTS[name]
    told = (ACRNN, "train.epochs=3", "train.ema_decay=0.5", *more)
    run = planned(base / name, packed_tones(base), *told, plain=True)
    train_on_ranks([run], ranks)
    return run


NAMES = ["little", "two", *(pytest.param(name, marks=pytest.mark.slow) for name in ("three", "zero2"))]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_curve_weights_and_running_statistics(base: Path, alone: RunDir, name: str) -> None:
    """Whatever the memory, bit for bit; on more ranks up to rounding. And it is one experiment, which a run directory names."""
    other = trained(base, name)
    assert alone.path.name == other.path.name
    rounding = 0 if CUTS[name][0] == 1 else 1e-6
    assert np.abs(curve(other) - curve(alone)).max() <= rounding
    expected, found = (load_file(run.trial(TRIAL).weights) for run in (alone, other))
    assert any("running_var" in key for key in expected) and expected.keys() == found.keys()
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) <= 10 * rounding


def shared(model: Classifier, ranks: int) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """A step of `LENGTHS`, dealt to so many ranks: gradients and losses added up, and the buffers afterwards."""
    step, waves = ClipSelection(np.arange(len(LENGTHS))), clips(*LENGTHS)
    task = Task.of_classes("abc", step.positions % 3)
    targets = ClipTargets.of_tasks([task], step.positions)
    parts = split_micro_batches(
        step.positions, np.array(LENGTHS), BatchSpec(ranks, 16_000, padded=True, group=model.frontend.group)
    )
    total, seen, told = [torch.zeros_like(parameter) for parameter in model.parameters()], torch.zeros(2, len(LENGTHS)), []
    for rank in range(ranks):
        copied = copy.deepcopy(model).train()
        statistics = RunningStatistics(copied, len(LENGTHS))
        batches = [
            collate(micro, samples.numpy(), offsets.numpy(), 0 * micro.clips.positions, targets)
            for micro in assign_to_ranks(step, parts, rank, ranks)
            for samples, offsets in [batch([waves[position] for position in micro.clips.positions])]
        ]
        here = DdpStrategy(copied, TrainSettings(precision="fp32"), ALONE, None)
        seen += accumulate_gradients(here, Objective([task], targets), batches, step, (1, 2), ALONE, statistics)
        statistics.update(len(LENGTHS), lambda mine: told.append(mine.clone()) or mine)  # type: ignore[func-returns-value]
        for sums, parameter in zip(total, copied.parameters(), strict=True):
            sums += parameter.grad
    after = copy.deepcopy(model)
    RunningStatistics(after, len(LENGTHS)).update(len(LENGTHS), lambda mine: torch.stack(told).sum(0))
    return total, seen, dict(after.named_buffers())


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_add_up_to_one(ranks: int) -> None:
    """In double precision: gradients, losses and running statistics, dropout on."""
    model = build_classifier(SMALL.model_copy(update={"dropout": 0.3, "norm_group": 4}), 3, seed=1).double()
    torch.testing.assert_close(shared(model, ranks), shared(model, 1), rtol=1e-11, atol=1e-13)


def test_killed_it_goes_on_bit_for_bit(base: Path) -> None:
    """Running statistics and all."""
    told = (ACRNN, "train.epochs=3", EVERY_STEP)
    whole, killed = (planned(base / name, packed_tones(base), *told, plain=True) for name in ("whole", "killed"))
    assert run_here(whole, TRIAL) == {TRIAL: 0}
    kill_at_step(killed, 7)
    assert run_here(killed, TRIAL) == {TRIAL: 0}
    one, other = (run.trial(TRIAL) for run in (whole, killed))
    assert len(other.attempts) == 2
    assert lines(one.current.steps) == lines(other.current.steps)
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert one.current.predictions.read_bytes() == other.current.predictions.read_bytes()


def test_the_cnn_is_killed_and_gone_on_with_and_shared(base: Path) -> None:
    """Bit for bit on one rank, or with little memory; up to rounding on two."""
    told = (CNN, "train.epochs=2", "train.weight_decay=1e-5", "train.optimizer=adam", EVERY_STEP)
    more = {"whole": (), "killed": (), "small": ("train.budget_seconds=5",), "shared": ()}
    runs = {name: planned(base / f"cnn-{name}", packed_tones(base), *told, *of, plain=True) for name, of in more.items()}
    assert run_here(runs["whole"], TRIAL) == {TRIAL: 0}
    kill_at_step(runs["killed"], 7)
    assert run_here(runs["killed"], TRIAL) == run_here(runs["small"], TRIAL) == {TRIAL: 0}
    train_on_ranks([runs["shared"]], 2)
    whole, killed, small = (runs[name].trial(TRIAL).weights.read_bytes() for name in ("whole", "killed", "small"))
    assert len(runs["killed"].trial(TRIAL).attempts) == 2 and whole == killed == small
    assert np.abs(curve(runs["shared"]) - curve(runs["whole"])).max() < 1e-4


def test_what_would_divide_a_group_is_refused(base: Path) -> None:
    lines = (f"data.shards={packed_tones(base)}", "train.global_batch=16", ACRNN)
    with pytest.raises(ConfigError, match=r"train\.accumulation would divide clips that model\.norm=batch"):
        load_settings(None, [*lines, "train.accumulation=3"])
    load_settings(None, [*lines, "train.accumulation=3", "model.norm=none"])
    with pytest.raises(UserError, match=r"5 x 0\.9 s, which train\.budget_seconds=4 would divide"):
        experiment.prepare_experiment(load_settings(None, [*lines, "train.budget_seconds=4"]))
    experiment.prepare_experiment(load_settings(None, [*lines, "train.budget_seconds=4", "model.norm=none"]))
    experiment.prepare_experiment(load_settings(None, [*lines, "train.budget_seconds=4", "data.max_seconds=0.8"]))
