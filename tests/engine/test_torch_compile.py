"""Compiled layers compute what they compute otherwise, for clips of any lengths; what compiling lacks is said at once."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import wav2vec2
from torch import Tensor

from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.errors import UserError
from ser_hpc.engine.torch_compile import compile_layers, missing_for_compile
from ser_hpc.models.classifier import Classifier, build_classifier

WAVLM = wav2vec2(model_type="wavlm")
WHISPER = {
    "model_type": "whisper", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
needs_a_compiler = pytest.mark.skipif(missing_for_compile() is not None, reason=f"torch.compile needs {missing_for_compile()}")


@pytest.fixture
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def classifier(config: dict[str, Any]) -> Classifier:
    return build_classifier(EncoderModel(weights=None, config=config, dropout=0.0), 3, seed=0).train()


def result(model: Classifier, *seconds: float) -> list[Tensor]:
    """Logits, and every gradient, for noises of these lengths."""
    torch.manual_seed(0)
    lengths = [int(s * 16_000) for s in seconds]
    samples = torch.randint(-3000, 3000, (sum(lengths),), dtype=torch.int16)
    logits = model(samples, torch.tensor([0, *lengths]).cumsum(0))["emotion"]
    model.zero_grad()
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.parametrize("config", [wav2vec2(), WAVLM, WHISPER], ids=["wav2vec2", "wavlm", "whisper"])
def test_compiled_layers_compute_the_same(config: dict[str, Any], compiler: None) -> None:
    """And compile once, however many layers and clips there are: WavLM's first layer differs from the others."""
    batches = [(0.5, 0.7), (0.4,), (0.9, 0.3, 0.6)]
    model = classifier(config)
    expected = [result(model, *batch) for batch in batches]
    compile_layers(model.encoder)
    for batch, wanted in zip(batches, expected, strict=True):
        for found, right in zip(result(model, *batch), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_no_compiler_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor, beside one, Python's headers, which a bare Debian has not got: not the compiler's hundred lines."""
    encoder = classifier(wav2vec2()).encoder
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.*g\+\+"):
        compile_layers(encoder)
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"needs Python's headers.*python3-dev"):
        compile_layers(encoder)
