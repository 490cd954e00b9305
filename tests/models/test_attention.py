"""The variable-length kernel as models call it, by its schema and by a stand-in on the CPU; gpu_checks.py runs the real one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from models.test_packed import Operations
from models.tiny import ENCODERS, batch, clips
from torch import Tensor
from torch.nn import functional as F

from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.encoders import packed_attention as attention
from ser_hpc.models.encoders.packed_attention import has_kernel, packed_attention
from ser_hpc.models.packed import Packing

CPU = torch.device("cpu")
GIVEN = batch(clips(9_000, 401, 13_007, 4_321, 700))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A stand-in for FlashAttention, forwards, without dropout; the probabilities that it was called with."""
    asked: list[float] = []

    def flash(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *rest: Any, scale: float) -> tuple[Tensor, ...]:
        asked.append(rest[3])
        assert starts.dtype == torch.int32 and rest[1] == rest[2] == int(starts.diff().max())
        parts = [[x[a:b].transpose(0, 1) for x in (q, k, v)] for a, b in pairwise(starts.tolist())]
        out = torch.cat([F.scaled_dot_product_attention(*part, scale=scale).transpose(0, 1) for part in parts])
        return out, *(torch.empty(0) for _ in range(4))

    monkeypatch.setattr(attention, "has_kernel", lambda device, dtype, width: True)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", flash, "CPU")
        yield asked


@pytest.mark.parametrize("name", ["wav2vec2, layer norm", "hubert", "whisper"])
def test_one_call_a_layer_serves_all_clips_with_dropout_and_without(name: str, kernel: list[float]) -> None:
    """In training with the configuration's probability, in evaluation with none, where its result is that of clip by clip."""
    config = {**(ENCODERS[name].config or {}), "attention_dropout": 0.25}
    model = build_classifier(ENCODERS[name].model_copy(update={"config": config, "dropout": None}), 4, seed=0)
    with torch.no_grad():
        model.train()(*GIVEN)
        assert kernel == [0.25, 0.25]
        found = model.eval()(*GIVEN)["emotion"]
        assert kernel == [0.25, 0.25, 0.0, 0.0]
        alone = [model(*batch([clip]))["emotion"] for clip in torch.split(GIVEN[0], GIVEN[1].diff().tolist())]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_kernels_own_derivative_is_taken(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which hands the probability and the random state on to its backward pass: by the schema, computing nothing."""
    monkeypatch.setattr(attention, "has_kernel", lambda device, dtype, width: True)
    meta = torch.device("meta")
    q, k, v = (torch.empty(8, 2, 16, dtype=torch.bfloat16, device=meta, requires_grad=True) for _ in range(3))
    with Operations() as seen:
        packed_attention(Packing((5, 3), meta), q, k, v, 0.25, dropout).sum().backward()
    names = [name for name, _ in seen.done if "flash_attention" in name]
    assert names == ["aten._flash_attention_forward.default", "aten._flash_attention_backward.default"]
    assert all(x.grad is not None and x.grad.shape == x.shape for x in (q, k, v))


def test_only_a_gpu_has_the_kernel() -> None:
    assert not has_kernel(CPU, torch.bfloat16, 64)
