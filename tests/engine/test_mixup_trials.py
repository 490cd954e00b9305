"""Mixup trains towards mixed distributions; killed and gone on with, and on more ranks, as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine.test_schedule import ALONE, EVERY_STEP, TRIAL, assert_same, train_here, train_killed_at_every_save
from small import curve, packed_tones, planned, pretrained_wav2vec2, train_on_ranks
from torch import Tensor
from torch.nn import functional as F

from ser_hpc.config.losses import CrossEntropySettings, DivergenceSettings, FocalSettings
from ser_hpc.config.mixup import WaveformMixupSettings
from ser_hpc.data.batches import Batch, collate
from ser_hpc.data.mixup import pair_clips
from ser_hpc.data.sampler import ClipSelection, assign_to_ranks
from ser_hpc.engine.objective import Objective
from ser_hpc.models.losses import build_loss
from ser_hpc.tasks.targets import ClassTarget, DistributionTarget
from ser_hpc.tasks.task import ClipTargets, Task

CLASSES = np.array([0, 1, 2, 0, 1, 2, 2, 2])
VOTES = np.random.default_rng(0).dirichlet([0.5] * 3, 8).astype(np.float32)
VOTES[3] = np.nan  # teaches nothing there, as itself and as a partner
(STEP,) = pair_clips([ClipSelection(np.arange(8))], WaveformMixupSettings(alpha=0.8), 7, 0)


def objective_of(task: Task, cut: list[list[int]], damaged: tuple[int, ...] = ()) -> tuple[Objective, list[Batch]]:
    targets = ClipTargets.of_tasks([task], np.arange(8))
    batches = []
    for micro in assign_to_ranks(STEP, [np.array(rows) for rows in cut], 0, 1):
        assert micro.clips.partners is not None
        count, wrong = len(micro.rows), np.isin(micro.clips.positions, damaged).astype(np.int64)
        of_partners = np.isin(micro.clips.partners.positions, damaged).astype(np.int64)
        batches.append(collate(micro, np.zeros(count, np.float32), np.arange(count + 1), wrong, targets, of_partners))
    return Objective([task], targets), batches


def gradient(task: Task, outputs: Tensor, cut: list[list[int]], damaged: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """By the outputs of each of the step's clips; and each clip's loss."""
    objective, batches = objective_of(task, cut, damaged)
    outputs = outputs.clone().requires_grad_()
    of_step = objective.begin_step(lambda *_: {}, batches, STEP, (0, 0), ALONE)
    losses = torch.zeros(1, 8)
    for batch in batches:
        loss, each = objective.loss({"emotion": outputs[batch.rows]}, batch, of_step)
        loss.backward()  # type: ignore[no-untyped-call]
        losses[:, batch.rows] = each
    assert outputs.grad is not None
    return outputs.grad, losses


OUTPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
WHOLE, CUT = [list(range(8))], [[4, 1], [0], [7, 2, 3], [5, 6]]


def mixed(values: np.ndarray) -> Tensor:
    assert STEP.partners is not None and STEP.shares is not None
    return torch.from_numpy(
        STEP.shares[:, None] * values + (1 - STEP.shares[:, None]) * values[STEP.partners.positions]
    ).float()


@pytest.mark.parametrize("cut", [WHOLE, CUT], ids=["whole", "cut"])
@pytest.mark.parametrize("balanced", [False, True])
def test_classes_are_learnt_as_mixed_distributions(cut: list[list[int]], balanced: bool) -> None:
    """With label smoothing; and where classes are balanced, each share weighs as its class does."""
    task = Task("emotion", ClassTarget(("a", "b", "c")), CLASSES, CrossEntropySettings(label_smoothing=0.1), balanced=balanced)
    weights = mixed(np.eye(3)[CLASSES] * task.clip_weights(np.arange(8))[:, None])
    outputs = OUTPUTS.clone().requires_grad_()
    shares = weights / weights.sum(1, keepdim=True)
    losses = F.cross_entropy(outputs, shares, reduction="none", label_smoothing=0.1)
    expected = (losses * weights.sum(1)).sum() / weights.sum()
    expected.backward()  # type: ignore[no-untyped-call]
    found, each = gradient(task, OUTPUTS, cut)
    torch.testing.assert_close(found, outputs.grad)
    torch.testing.assert_close(each[0], losses.detach())
    objective, _ = objective_of(task, WHOLE)
    loss, weight = objective.combined(each, STEP)
    assert loss / weight == pytest.approx(expected.item(), rel=1e-5)


def test_a_focal_loss_is_that_of_both_by_their_shares() -> None:
    task = Task("emotion", ClassTarget(("a", "b", "c")), CLASSES, FocalSettings(gamma=2))
    assert STEP.shares is not None and STEP.partners is not None
    focal, shares = build_loss(FocalSettings(gamma=2)), torch.from_numpy(STEP.shares).float()
    ours, theirs = (focal(OUTPUTS, torch.from_numpy(CLASSES[at])) for at in (STEP.positions, STEP.partners.positions))
    torch.testing.assert_close(gradient(task, OUTPUTS, CUT)[1][0], shares * ours + (1 - shares) * theirs)


@pytest.mark.parametrize("cut", [WHOLE, CUT], ids=["whole", "cut"])
def test_soft_labels_are_learnt_as_their_mixture(cut: list[list[int]]) -> None:
    """A clip without votes adds nothing to its partner's, and takes nothing away."""
    task = Task("emotion", DistributionTarget(("a", "b", "c")), VOTES, DivergenceSettings())
    votes = mixed(np.nan_to_num(VOTES))
    outputs = OUTPUTS.clone().requires_grad_()
    (-(votes * outputs.log_softmax(dim=1)).sum() / votes.sum()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(gradient(task, OUTPUTS, cut)[0], outputs.grad)


def test_a_damaged_clip_teaches_nothing_and_its_partner_by_its_own_share() -> None:
    """And the step is divided by what it would have weighed: no rank had to wait for the one that found the damage."""
    task = Task("emotion", ClassTarget(("a", "b", "c")), CLASSES, CrossEntropySettings())
    assert STEP.partners is not None and STEP.shares is not None
    found, _ = gradient(task, OUTPUTS, CUT, damaged=(2,))
    (mixed_with,) = np.flatnonzero(STEP.partners.positions == 2)
    whole, _ = gradient(task, OUTPUTS, CUT)
    outputs = OUTPUTS.clone().requires_grad_()
    alone = F.cross_entropy(outputs[[mixed_with]], torch.from_numpy(CLASSES[[mixed_with]]))
    (alone * float(STEP.shares[mixed_with]) / 8).backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None and not found[2].any()
    torch.testing.assert_close(found[mixed_with], outputs.grad[mixed_with])
    others = [row for row in range(8) if row not in (2, mixed_with)]
    torch.testing.assert_close(found[others], whole[others])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixup")


def test_killed_it_goes_on_bit_for_bit_and_two_ranks_train_as_one(base: Path) -> None:
    told = ("data.mixup.kind=waveform", "train.global_batch=12", "data.balance=speaker", "model.dropout=0", "train.epochs=1")
    whole, killed, two, plain = (
        planned(base / name, packed_tones(base), *told[(name == "plain") :], EVERY_STEP)
        for name in ("whole", "killed", "two", "plain")
    )
    assert_same(train_here(whole), train_killed_at_every_save(killed, skip=2))
    train_on_ranks([two], 2)
    assert np.abs(curve(two) - curve(whole)).max() < 1e-4
    train_here(plain)
    assert np.abs(curve(plain) - curve(whole)).max() > 1e-3, "it mixes"
    assert plain.path.name != whole.path.name


def test_states_of_a_frozen_encoder_are_mixed(base: Path) -> None:
    frozen = (f"model.weights={pretrained_wav2vec2(base / 'weights')}", "model.config=null", "model.freeze=encoder")
    whole, killed, plain = (
        planned(base / f"pooled-{name}", packed_tones(base), *frozen, *more, EVERY_STEP)
        for name, more in (("whole", ["data.mixup=pooled"]), ("killed", ["data.mixup=pooled"]), ("plain", []))
    )
    assert_same(train_here(whole), train_killed_at_every_save(killed, skip=3))
    assert whole.trial(TRIAL).feature_cache.exists()
    train_here(plain)
    assert np.abs(curve(plain) - curve(whole)).max() > 1e-4, "it mixes"
