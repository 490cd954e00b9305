"""Batch normalisation: torch's own, its running statistics the same whoever computed which group."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ser_hpc.models.norms import FrameBatchNorm, RunningStatistics

CHANNELS = 4


def alone(summed: Tensor) -> Tensor:
    return summed


def normed() -> tuple[FrameBatchNorm, nn.BatchNorm1d]:
    """Ours and torch's, in double precision, with the same weights and some past."""
    ours, theirs = FrameBatchNorm(CHANNELS).double(), nn.BatchNorm1d(CHANNELS).double()
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(CHANNELS) + 0.5)
            ours.state_dict()[name].copy_(tensor)
    return ours, theirs


def test_it_is_torchs_but_for_when_the_running_ones_move() -> None:
    ours, theirs = normed()
    x = torch.randn(2, 9, 5, CHANNELS).double()
    running = RunningStatistics(ours, global_batch=2)
    running.begin()
    torch.testing.assert_close(ours(x).flatten(0, 2), theirs(x.flatten(0, 2)))
    assert not torch.equal(ours.running_mean, theirs.running_mean), "a forward pass alone leaves the running ones as they are"
    running.add(2)
    running.update(2, alone)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x).flatten(0, 2), theirs.eval()(x.flatten(0, 2)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_a_step_counts_alike_whoever_has_which_group(ranks: int) -> None:
    """Once, with torch's momentum, as the mean of its groups by clips; ranks without a group add nothing but their filler."""
    torch.manual_seed(1)
    groups = [torch.randn(clips, 7, 5, CHANNELS).double() for clips in (3, 3, 2)]
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
        found = sum(len(group) / 8 * moment(group, dim=(0, 1, 2)) for group in groups)
        torch.testing.assert_close(ours.state_dict()[name], 0.9 * before[name] + 0.1 * found, rtol=0, atol=1e-14)


def test_a_small_step_counts_for_little() -> None:
    """The last step of an epoch may have one clip of 32: 1/32 of the usual weight, so that evaluation is not by that clip."""
    ours, theirs = normed()
    theirs.momentum = 0.1 / 32
    frames = torch.randn(35, CHANNELS).double()
    running = RunningStatistics(ours, global_batch=32)
    running.begin()
    torch.testing.assert_close(ours(frames), theirs(frames))
    running.add(1)
    running.update(1, alone)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_a_lone_value_is_no_statistic() -> None:
    """A clip of one frame and one band: scaled as in evaluation, and nothing learnt of it; torch refuses it."""
    ours, theirs = normed()
    value = torch.randn(1, CHANNELS).double()
    running = RunningStatistics(ours, global_batch=1)
    running.begin()
    torch.testing.assert_close(ours(value), theirs.eval()(value))
    running.add(1)
    running.update(1, alone)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


@pytest.mark.parametrize("training", [True, False])
def test_parameters_that_were_cast_normalise_all_the_same(training: bool) -> None:
    """ZeRO casts them to bf16, and leaves running statistics in float32, which torch's own kernel refuses."""
    norm, rows = FrameBatchNorm(4).train(training), torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    expected = norm(rows)
    for parameter in norm.parameters():
        parameter.data = parameter.data.bfloat16()
    scaled = norm(rows.bfloat16())
    assert scaled.dtype == torch.bfloat16 and (not training or norm.found.dtype == torch.float32)
    torch.testing.assert_close(scaled.float(), expected, atol=0.02, rtol=0.01)
    scaled.sum().backward()
    assert norm.running_var is not None and norm.running_var.dtype == torch.float32 and norm.weight.grad is not None
