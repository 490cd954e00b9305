"""The moving average of the weights is what the formula says, and is what gets scored and kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.ema import WeightEma

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def test_average_is_the_formula_and_the_module_gets_its_own_weights_back() -> None:
    """Parameters and BatchNorm's statistics alike; saved and restored in the middle, it goes on as before."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightEma(module, 0.9, {})
    expected = {name: value.double().clone() for name, value in module.state_dict().items()}
    for step in range(1, 30):
        with torch.no_grad():
            for value in module.state_dict().values():
                value.add_(1) if value.dtype == torch.long else value.add_(torch.randn_like(value))
        average.update(step)
        decay = min(0.9, step / (step + 9))
        for name, value in module.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
        if step == 15:
            average = WeightEma(module, 0.9, average.tensors())
    own = {name: value.clone() for name, value in module.state_dict().items()}
    with average.in_place(ALONE):
        inside = {name: value.clone() for name, value in module.state_dict().items()}
    for name, value in module.state_dict().items():
        assert torch.equal(value, own[name])
        if value.is_floating_point():
            torch.testing.assert_close(inside[name].double(), expected[name], atol=1e-5, rtol=0)
            torch.testing.assert_close(average.tensors()[name], inside[name])


def test_without_a_decay_nothing_is_kept_or_changed() -> None:
    module = nn.Linear(2, 2)
    average = WeightEma(module, 0.0, {})
    average.update(1)
    before = module.weight.detach().clone()
    with average.in_place(ALONE):
        assert torch.equal(module.weight, before)
    assert average.tensors() == {}


def test_ranks_agree_on_buffers_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's statistics are broadcast one by one: in another order elsewhere, means would become variances."""
    module = nn.Sequential(*(nn.BatchNorm1d(width) for width in (3, 5, 7)))
    average = WeightEma(module, 0.9, {})
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(World, "broadcast_from_main", lambda self, tensors: sent.extend(tensors))
    with torch.no_grad():
        for number, buffer in enumerate(module.buffers()):
            buffer.fill_(number)
    average = WeightEma(module, 0.9, {})
    with average.in_place(ALONE):
        statistics = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        assert [float(tensor[0]) for tensor in sent] == [float(buffer[0]) for buffer in statistics]
