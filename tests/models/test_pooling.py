"""Poolings: what their sources define, each clip for itself, and no rounding where its frames hardly differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ser_hpc.config.heads import AttentionPooling, AttentiveStatisticsPooling, MeanPooling, MeanStdPooling, PoolingSettings
from ser_hpc.models.heads.build import build_pooling
from ser_hpc.models.heads.pooling import Attention

WIDTH, LENGTHS = 6, (5, 1, 12, 3)
POOLINGS = {of.kind: of for of in (MeanPooling(), MeanStdPooling(), AttentionPooling(hidden=4), AttentiveStatisticsPooling())}
WITH_DEVIATION = ("mean_std", "attentive_statistics")


def frames(seed: int = 0) -> Tensor:
    return torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("pooling", POOLINGS.values(), ids=POOLINGS)
def test_a_clip_is_pooled_as_alone(pooling: PoolingSettings) -> None:
    torch.manual_seed(0)
    module, given = build_pooling(pooling, WIDTH).double(), frames()
    together = module(given, torch.tensor(LENGTHS))
    alone = [module(clip, torch.tensor([len(clip)])) for clip in torch.split(given, LENGTHS)]
    assert together.shape == (len(LENGTHS), module.out_width)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


def test_attentive_statistics_are_okabes() -> None:
    """e_t = v tanh(W h_t + b) + k, a softmax over the clip; mean = sum a h, deviation^2 = sum a h^2 - mean^2 (equations 3 to
    6). Their mean is that of `attention` with the same weights."""
    torch.manual_seed(1)
    module = build_pooling(AttentiveStatisticsPooling(hidden=4), WIDTH).double()
    assert isinstance(module, Attention)
    module.score.weight.data.mul_(20)  # weights that differ much from frame to frame
    mean_alone = build_pooling(AttentionPooling(hidden=4), WIDTH).double()
    mean_alone.load_state_dict(module.state_dict())
    given, lengths = frames(), torch.tensor(LENGTHS)
    expected = []
    for h in torch.split(given, LENGTHS):
        a = module.score((h @ module.hidden.weight.T + module.hidden.bias).tanh()).softmax(0)
        mean = (a * h).sum(0)
        variance = (a * h.square()).sum(0) - mean.square()
        expected.append(torch.cat([mean, (variance.clamp(min=0) + 1e-8).sqrt()]))
    found = module(given, lengths)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-10)
    torch.testing.assert_close(found[:, :WIDTH], mean_alone(given, lengths), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", WITH_DEVIATION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_that_are_alike_give_no_noise(kind: str, dtype: torch.dtype) -> None:
    """Their deviation is the floor's, in any number format, and its gradient finite: not the rounding of a large mean."""
    torch.manual_seed(2)
    module = build_pooling(POOLINGS[kind], WIDTH).to(dtype)
    given = (30 * frames(3)[:1]).to(dtype).expand(40, WIDTH).clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = module(given, torch.tensor([39, 1]))
    assert found.dtype == torch.float32
    assert (found[:, WIDTH:] < 2e-4).all()
    found.square().sum().backward()
    assert given.grad is not None and given.grad.isfinite().all()
