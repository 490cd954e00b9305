"""Few sizes of Fourier transforms on a GPU, whatever the lengths of clips, and the same results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models.test_packed import WEIGHTS, model_of
from models.tiny import CONFIGS, batch, clips

from ser_hpc.models.encoders import wav2vec2, whisper
from ser_hpc.models.packed import fft_rows

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """Sizes are rounded; the shapes that are transformed from now on, either way."""
    seen: set[tuple[int, ...]] = set()

    def spied(real: Any) -> Any:
        return lambda x, *rest, **more: (seen.add(tuple(x.shape)), real(x, *rest, **more))[1]

    for module in (wav2vec2, whisper):
        monkeypatch.setattr(module, "fft_rows", lambda count, device: fft_rows(count, GPU))
    for name in ("rfft", "irfft"):
        monkeypatch.setattr(torch.fft, name, spied(getattr(torch.fft, name)))
    return seen


def test_sizes_are_few_and_hardly_larger() -> None:
    counts = range(1, 30_001)
    rounded = [fft_rows(count, GPU) for count in counts]
    assert all(count <= size <= 1.25 * count for count, size in zip(counts, rounded, strict=True))
    assert len(set(rounded)) <= 4 * 15 and rounded == sorted(rounded)
    assert [fft_rows(count, CPU) for count in counts] == list(counts)


@pytest.mark.parametrize("name", CONFIGS)
def test_rounded_sizes_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and every gradient, in double precision."""
    model, given = model_of(name), batch(clips(9_000, 401, 13_007, 4_321, 30_000, 700))
    found = []
    for _ in range(2):
        model.zero_grad()
        logits = model(*given)["emotion"]
        (logits.softmax(-1) @ WEIGHTS).sum().backward()
        found.append((logits.detach(), {key: p.grad for key, p in model.named_parameters()}))
        as_on_a_gpu(monkeypatch)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["wav2vec2, layer norm", "whisper"])
def test_a_hundred_batches_need_few_plans(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any lengths: unrounded, nearly each would be of a size of its own."""
    seen, rng = as_on_a_gpu(monkeypatch), np.random.default_rng(0)
    model = model_of(name).eval()
    with torch.no_grad():
        for _ in range(100):
            lengths = rng.integers(400, 30_000, rng.integers(1, 5)).tolist()
            model(torch.zeros(sum(lengths), dtype=torch.int16), torch.tensor([0, *lengths]).cumsum(0))
    assert len(seen) <= 40
