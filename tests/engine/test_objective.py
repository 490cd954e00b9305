"""The loss of several tasks: a step's gradients are the same however it is cut up, that of a loss over the whole step too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.tiny import ENCODERS, clips
from torch import Tensor

from ser_hpc.config.heads import MlpSettings
from ser_hpc.config.losses import ConcordanceSettings, CrossEntropySettings, DivergenceSettings, FocalSettings
from ser_hpc.config.settings import TrainSettings
from ser_hpc.data.batches import collate
from ser_hpc.data.sampler import ClipSelection, assign_to_ranks
from ser_hpc.engine.distributed.ddp import DdpStrategy
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.objective import Objective
from ser_hpc.engine.step import accumulate_gradients
from ser_hpc.models.classifier import build_for_tasks
from ser_hpc.models.losses import build_loss, concordance_loss
from ser_hpc.models.norms import RunningStatistics
from ser_hpc.tasks import metrics
from ser_hpc.tasks.targets import ClassTarget, DistributionTarget, NumbersTarget
from ser_hpc.tasks.task import ClipTargets, Task

LENGTHS = (4000, 9000, 1500, 6400, 2100, 5000)
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
NAN = float("nan")
TASKS = [
    Task("emotion", ClassTarget(("a", "b", "c")), np.array([0, 1, 2, 0, 1, 2]), FocalSettings()),
    Task("gender", ClassTarget(("f", "m")), np.array([0, -1, 1, -1, 1, 0]), CrossEntropySettings(label_smoothing=0.1), 0.5),
    Task(
        "attributes",
        NumbersTarget(("arousal", "valence"), 1.0, 5.0),
        np.array([[0.1, 0.5], [NAN, 0.2], [0.9, 0.3], [0.4, 0.8], [0.7, NAN], [0.2, 0.6]], dtype=np.float32),
        ConcordanceSettings(),
        2.0,
    ),
    Task(
        "votes",
        DistributionTarget(("a", "b", "c")),
        np.array([[1, 0, 0], [0.5, 0.5, 0], [NAN] * 3, [0, 0.2, 0.8], [1 / 3] * 3, [0, 0, 1]], dtype=np.float32),
        DivergenceSettings(),
    ),
]


def gradients(tasks: list[Task], cut: list[list[int]], damaged: int | None = None) -> tuple[Tensor, list[Tensor]]:
    """Each clip's losses, and the gradients, of a step cut into micro-batches of these clips."""
    positions, waves = np.arange(len(LENGTHS)), clips(*LENGTHS)
    targets = ClipTargets.of_tasks(tasks, positions)
    model = build_for_tasks(ENCODERS["wav2vec2, layer norm"].model_copy(update={"head": MlpSettings()}), tasks, seed=3).double()
    strategy = DdpStrategy(model, TrainSettings(precision="fp32"), ALONE, None)
    strategy.train_mode(True)
    batches = []
    for micro in assign_to_ranks(ClipSelection(positions), [np.array(part) for part in cut], 0, 1):
        sound = [waves[position].numpy() for position in micro.clips.positions]
        offsets, wrong = np.cumsum([0, *map(len, sound)]), (micro.clips.positions == damaged).astype(np.int64)
        batches.append(collate(micro, np.concatenate(sound), offsets, wrong, targets))
    objective = Objective(tasks, targets)
    losses = accumulate_gradients(
        strategy, objective, batches, ClipSelection(positions), (0, 0), ALONE, RunningStatistics(strategy.module, len(LENGTHS))
    )
    assert losses is not None
    return losses, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("damaged", [None, 2])
def test_a_step_of_several_tasks_learns_the_same_however_it_is_cut(damaged: int | None) -> None:
    whole = gradients(TASKS, [[0, 1, 2, 3, 4, 5]], damaged)
    torch.testing.assert_close(gradients(TASKS, [[0], [3, 1], [2, 4], [5]], damaged), whole, rtol=1e-6, atol=1e-8)


def test_clips_without_a_target_weigh_nothing_and_every_head_is_reached() -> None:
    _, found = gradients(TASKS, [[0, 1, 2, 3, 4, 5]])
    model = build_for_tasks(ENCODERS["wav2vec2, layer norm"].model_copy(update={"head": MlpSettings()}), TASKS, seed=3)
    assert len(found) == len(list(model.parameters())), "every trainable tensor is reached"
    changed = [*TASKS]
    values = TASKS[1].values.copy()
    given = ClipTargets.of_tasks([TASKS[1]], np.arange(6))
    assert given.weights["gender"].tolist() == [1, 0, 1, 0, 1, 1]
    values[values < 0] = -7  # whatever stands for "none"
    changed[1] = Task("gender", TASKS[1].target, values, TASKS[1].loss, TASKS[1].weight)
    torch.testing.assert_close(gradients(changed, [[0, 1, 2, 3, 4, 5]])[1], found, rtol=0, atol=0)


def test_a_task_that_no_clip_of_a_step_has_teaches_nothing() -> None:
    none = [Task(task.name, task.target, task.values * NAN if task.values.ndim > 1 else 0 * task.values - 1, task.loss)
            for task in TASKS[1:]]  # fmt: skip
    losses, found = gradients([TASKS[0], *none], [[0, 1, 2], [3, 4, 5]])
    alone = gradients(TASKS[:1], [[0, 1, 2], [3, 4, 5]])[1]
    assert bool(losses.isfinite().all())
    assert all(bool((each == 0).all()) for each in found[len(alone) :])


def test_the_concordance_loss_is_one_minus_the_score() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, targets = (torch.rand(20, 3, generator=generator) for _ in range(2))
    loss = float(concordance_loss(outputs, targets, torch.ones(20)))
    scores = [metrics.concordance(targets[:, i].double().numpy(), outputs[:, i].double().numpy()) for i in range(3)]
    assert loss == pytest.approx(1 - np.mean(scores), abs=1e-6)


def test_losses_have_finite_gradients_at_their_ends() -> None:
    sure = torch.tensor([[80.0, 0.0], [-80.0, 0.0], [0.0, 0.0]], requires_grad=True)
    focal = build_loss(FocalSettings(gamma=0.5))(sure, torch.tensor([0, 0, 1]))
    kl = build_loss(DivergenceSettings())(sure, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    flat = concordance_loss(sure, torch.zeros(3, 2), torch.tensor([1.0, 0.0, 0.0]))
    (slope,) = torch.autograd.grad((focal + kl).sum() + flat, sure)
    assert bool(slope.isfinite().all())


def test_a_rank_without_clips_reaches_every_head_with_zeros() -> None:
    """Its filler takes part in the backward pass, that of a loss over the whole step too."""
    positions, waves = np.arange(len(LENGTHS)), clips(*LENGTHS)
    targets = ClipTargets.of_tasks(TASKS, positions)
    (filler,) = assign_to_ranks(ClipSelection(positions), [positions], 1, 2)
    sound = [waves[position].numpy() for position in filler.clips.positions]
    offsets, fine = np.cumsum([0, *map(len, sound)]), np.zeros(len(sound), dtype=np.int64)
    batches = [collate(filler, np.concatenate(sound), offsets, fine, targets)]
    model = build_for_tasks(ENCODERS["wav2vec2, layer norm"].model_copy(update={"head": MlpSettings()}), TASKS, seed=3)
    strategy = DdpStrategy(model, TrainSettings(precision="fp32"), ALONE, None)
    strategy.train_mode(True)
    statistics = RunningStatistics(strategy.module, len(LENGTHS))
    at = ClipSelection(positions)
    accumulate_gradients(strategy, Objective(TASKS, targets), batches, at, (0, 0), ALONE, statistics)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
