"""Batch normalisation: torch's own on a group's real frames, its running statistics the same whoever computed which group."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ser_hpc.models.batch_norm import RaggedBatchNorm, RunningStatistics
from ser_hpc.models.ragged import frame_mask

CHANNELS = 4


def alone(summed: Tensor) -> Tensor:
    return summed


def normed() -> tuple[RaggedBatchNorm, nn.BatchNorm2d]:
    """Ours and torch's, in double precision, with the same weights and some past."""
    ours, theirs = RaggedBatchNorm(CHANNELS).double(), nn.BatchNorm2d(CHANNELS).double()
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(CHANNELS) + 0.5)
            ours.state_dict()[name].copy_(tensor)
    return ours, theirs


def test_it_knows_no_padding() -> None:
    """A group's statistics are those of its real frames; nothing of the padding is learnt from or left behind."""
    ours, theirs = normed()
    x, real = torch.randn(2, CHANNELS, 9, 5).double(), frame_mask(torch.tensor([9, 6]), 9, torch.device("cpu"))
    running = RunningStatistics(ours, global_batch=2)
    running.begin()
    found = ours(x.masked_fill(~real[:, None, :, None], 1e6), real)
    rows = torch.cat([x[0], x[1, :, :6]], dim=1)[None]
    torch.testing.assert_close(torch.cat([found[0], found[1, :, :6]], dim=1)[None], theirs(rows))
    assert not found[1, :, 6:].any()
    assert not torch.equal(ours.running_mean, theirs.running_mean), "a forward pass alone leaves the running ones as they are"
    running.add(2)
    running.update(2, alone)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_a_step_counts_alike_whoever_has_which_group(ranks: int) -> None:
    """Once, with torch's momentum, as the mean of its groups by clips; ranks without a group add nothing but their filler."""
    torch.manual_seed(1)
    groups = [torch.randn(clips, CHANNELS, 7, 5).double() for clips in (3, 3, 2)]
    ours, _ = normed()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    told: list[Tensor] = []
    for rank in range(ranks):
        copied = copy.deepcopy(ours)
        running = RunningStatistics(copied, global_batch=8)
        running.begin()
        for group in groups[rank::ranks]:
            copied(group)
            running.add(len(group))
        if rank >= len(groups):
            copied(groups[0][:1])  # a filler
        running.update(8, lambda mine: told.append(mine.clone()) or mine)  # type: ignore[func-returns-value]
    running = RunningStatistics(ours, global_batch=8)
    running.update(8, lambda mine: torch.stack(told).sum(0))
    for name, moment in (("running_mean", torch.mean), ("running_var", torch.var)):
        found = sum(len(group) / 8 * moment(group, dim=(0, 2, 3)) for group in groups)
        torch.testing.assert_close(ours.state_dict()[name], 0.9 * before[name] + 0.1 * found, rtol=0, atol=1e-14)


def test_a_small_step_counts_for_little() -> None:
    """The last step of an epoch may have one clip of 32: 1/32 of the usual weight, so that evaluation is not by that clip."""
    ours, theirs = normed()
    theirs.momentum = 0.1 / 32
    clip = torch.randn(1, CHANNELS, 7, 5).double()
    running = RunningStatistics(ours, global_batch=32)
    running.begin()
    torch.testing.assert_close(ours(clip), theirs(clip))
    running.add(1)
    running.update(1, alone)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_a_lone_value_is_no_statistic() -> None:
    """A clip of one frame and one band: scaled as in evaluation, and nothing learnt of it; torch refuses it."""
    ours, theirs = normed()
    value = torch.randn(1, CHANNELS, 1, 1).double()
    running = RunningStatistics(ours, global_batch=1)
    running.begin()
    torch.testing.assert_close(ours(value), theirs.eval()(value))
    running.add(1)
    running.update(1, alone)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
