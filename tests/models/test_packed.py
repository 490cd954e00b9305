"""Packed encoders compute what transformers' own compute on each clip alone: logits and every gradient, in double precision."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models.tiny import CONFIGS, ENCODERS, batch, clips
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.errors import UserError
from ser_hpc.models.classifier import Classifier, build_classifier
from ser_hpc.models.encoders import packed_attention
from ser_hpc.models.packed import Packing

SHORTEST = (1, 399, 400, 401, 719, 720)  # around the receptive field, 400, and the first second frame
WEIGHTS = torch.arange(4.0, dtype=torch.float64)


def lengths(seed: int) -> list[int]:
    """Awkward lengths in an awkward order: some too short for a frame, two alike and side by side."""
    rng = np.random.default_rng(seed)
    drawn = [*rng.choice(SHORTEST, 3, replace=False), *rng.integers(721, 14_000, 5)]
    return [int(n) for n in (*rng.permutation(drawn), 8_000, 8_000)]


def model_of(name: str, **changes: Any) -> Classifier:
    """With weights far from their initial, nearly linear state."""
    model = build_classifier(ENCODERS[name].model_copy(update=changes), 4, seed=1).double().train()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def theirs(name: str, positions: int | None = None) -> Any:
    """transformers' encoder; Whisper's for clips of so many positions."""
    shape: Any = transformers.AutoConfig.for_model(**CONFIGS[name], mask_time_prob=0.0, mask_feature_prob=0.0)
    for key in shape.to_dict():
        if key.endswith(("dropout", "layerdrop")):
            setattr(shape, key, 0.0)
    if shape.model_type != "whisper":
        return transformers.AutoModel.from_config(shape).double().train()
    shape.max_source_positions = positions
    return WhisperEncoder(shape).double().train()


def alone(name: str, model: Classifier, wave: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A clip's logits and all gradients, its encoder run by transformers."""
    weights = {key: value.detach() for key, value in model.encoder.state_dict().items()}
    if name == "whisper":
        mel: list[Tensor] = []
        hook = model.encoder.get_submodule("conv1").register_forward_pre_hook(lambda _, given: mel.append(given[0]))
        with torch.no_grad():
            model(*batch([wave]))
        hook.remove()
        positions = -(-len(wave) // 320)
        weights["embed_positions.weight"] = weights["embed_positions.weight"][:positions]
        encoder, given = theirs(name, positions), mel[0][:, :, : 2 * positions]
    else:
        encoder, x = theirs(name), wave.double() / 32768
        x = (x - x.mean()) / (x.var(correction=0) + 1e-7).sqrt()
        given = F.pad(x, (0, max(0, 400 - len(x))))[None]
    encoder.load_state_dict(weights)
    head: Any = model.head
    model.zero_grad()
    logits = head.classifier(head.projector(encoder(given).last_hidden_state[0]).mean(0))
    (logits.softmax(-1) @ WEIGHTS).backward()
    both = {f"encoder.{key}": p.grad for key, p in encoder.named_parameters()} | {
        f"head.{key}": p.grad for key, p in head.named_parameters()
    }
    return logits.detach(), {key: grad.clone() for key, grad in both.items() if grad is not None}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CONFIGS)
def test_a_pack_is_the_sum_of_its_clips_as_transformers_computes_them(name: str, seed: int) -> None:
    """Nothing crosses from clip to clip, and nothing is approximated; with a frozen stem the rest is the same."""
    waves = clips(*lengths(seed))
    for freeze in ("none", "feature_encoder"):
        model = model_of(name, freeze=freeze)
        found = [alone(name, model, wave) for wave in waves]
        model.zero_grad()
        logits = model(*batch(waves))["emotion"]
        (logits.softmax(-1) @ WEIGHTS).sum().backward()
        torch.testing.assert_close(logits.detach(), torch.stack([row for row, _ in found]), rtol=0, atol=1e-10)
        trained = {key for key, p in model.named_parameters() if p.requires_grad}
        assert any(key.startswith("encoder.") for key in trained)
        for key, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (key in trained)
            if parameter.grad is not None:
                expected = sum(grads[key] for _, grads in found)
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


def test_whisper_features_are_the_extractors() -> None:
    """The spectrogram computed over the pack is transformers', clip by clip, to rounding; beyond a clip there are zeros."""
    model = build_classifier(ENCODERS["whisper"], 4, 0).eval()
    seen: list[Tensor] = []
    model.encoder.get_submodule("conv1").register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    waves = clips(12_001, 1, 200, 320, 31_700, 32_000, 40_000, 9_599, 9_601)
    waves[0][-80:] = 30_000  # the loudest window may lie beyond the last frame
    model(*batch(waves))
    extractor, start = transformers.WhisperFeatureExtractor(chunk_length=2), 0
    for wave in waves:
        frames = 2 * min(100, -(-len(wave) // 320))
        told = extractor(wave.numpy().astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt").input_features[0]
        torch.testing.assert_close(seen[0][:, start : start + frames], told[:, :frames], rtol=0, atol=1e-5)
        assert not seen[0][:, start + frames : start + frames + 4].any()
        start += frames + 4
    assert start == seen[0].shape[1]


def test_clips_that_share_an_attention_call_do_not_see_each_other() -> None:
    """GPUs pad clips of like length to one call: outputs and gradients are those of a call for each."""
    sizes, generator = (7, 30, 1, 28, 30, 9, 100), torch.Generator().manual_seed(0)
    given = [torch.randn(sum(sizes), 2, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    gate, table = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((sum(sizes), 2, 1), (2, 100, 100))
    )

    def computed(like: float, biased: bool) -> list[Tensor]:
        packing = Packing(sizes, torch.device("cpu"), like)
        qkv = [x.clone().requires_grad_() for x in given]
        biases = packed_attention.gated_biases(packing, gate, table) if biased else None
        out = packed_attention.packed_attention(packing, *qkv, scale=0.5, biases=biases)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        return [out.detach(), *(x.grad for x in qkv if x.grad is not None)]

    for biased in (False, True):
        for one, other in zip(computed(1.0, biased), computed(0.5, biased), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_backward_never_wait_for_the_device(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without values reading one is an error (`.item()`, a boolean index). What is computed is a GPU's path."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which such a device lacks
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(packed_attention, "has_kernel", lambda _, dtype, width: dtype == torch.bfloat16)
    model = build_classifier(ENCODERS[name], 4, 0).to("meta", dtype).train()
    logits = model(*batch(clips(12_001, 300, 16_000, 15_000, 8_123, 40_000)))["emotion"]
    logits.sum().backward()
    assert logits.shape == (6, 4)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", ["wav2vec2, group norm", "wavlm, layer norm", "whisper"])
def test_no_gradient_below_the_first_trained_layer(name: str) -> None:
    """A frozen layer is as cheap as in evaluation: no graph is recorded up to its output."""
    model = model_of(name, freeze_layers=1)
    layers = model.encoder.get_submodule("layers" if name == "whisper" else "encoder.layers")
    recorded: list[bool] = []

    def look(*given: Any) -> None:
        output = given[-1]
        recorded.append((output[0] if isinstance(output, tuple) else output).requires_grad)

    for layer in layers.children():
        layer.register_forward_hook(look)
    model(*batch(clips(9_000, 5_000)))["emotion"].sum().backward()
    assert recorded == [False, True]
    with_gradient = {key for key, p in model.encoder.named_parameters() if p.grad is not None}
    assert with_gradient and all("layers.1." in key or key.split(".")[-2] == "layer_norm" for key in with_gradient)
    with pytest.raises(UserError, match="has 2 layers"):
        build_classifier(ENCODERS[name].model_copy(update={"freeze_layers": 3}), 4, 0)


class LowRank(nn.Module):
    """An adapter of rank 2 (LoRA, Hu et al. 2021) on a frozen weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.full((2, weight.shape[1]), 0.01, dtype=weight.dtype))
        self.up = nn.Parameter(torch.full((weight.shape[0], 2), 0.01, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


@pytest.mark.parametrize("name", ENCODERS)
def test_no_gradient_below_the_first_adapter(name: str) -> None:
    """What the stem makes never wants a gradient, unlike in transformers, which marks its input."""
    model = model_of(name).train()
    model.encoder.requires_grad_(False)
    layers = model.encoder.get_submodule("layers" if name == "whisper" else "encoder.layers")
    wanted: list[bool] = []
    for layer in layers.children():
        query: Any = layer.get_submodule("self_attn" if name == "whisper" else "attention").q_proj
        parametrize.register_parametrization(query, "weight", LowRank(query.weight))
        layer.register_forward_pre_hook(lambda _, given: wanted.append(given[0].requires_grad))
    model(*batch(clips(9_000, 5_000)))["emotion"].sum().backward()
    assert wanted == [False, True]
    with_gradient = {key for key, p in model.encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert len(with_gradient) == 4 and all(".parametrizations.weight.0." in key for key in with_gradient)


def test_padded_whisper_is_another_model() -> None:
    """What the switch is for: silence is attended to, so a short clip's logits differ; a clip of the full length has none."""
    short, full = clips(9_000), clips(32_000)
    settings: EncoderModel = ENCODERS["whisper"]
    real, padded = (model_of("whisper", whisper_pad_to_30s=pad).eval() for pad in (False, True))
    with torch.no_grad():
        differences = [(real(*batch(w))["emotion"] - padded(*batch(w))["emotion"]).abs().max() for w in (short, full)]
    assert settings.whisper_pad_to_30s is False
    assert differences[0] > 1e-4 and differences[1] < 1e-12


def test_attention_never_plans_for_a_shape() -> None:
    """cuDNN's, torch's first choice on new GPUs, would: wherever a model of ours is, it is off."""
    assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_what_is_repeated_are_summed_in_float32(dtype: torch.dtype) -> None:
    """In order, each clip's own: torch would add them up as they come, in bf16 each time with an error of its own."""
    packing, generator = Packing((1500, 3, 700), torch.device("cpu")), torch.Generator().manual_seed(0)
    x = torch.randn(3, 10, 8, generator=generator).to(dtype).requires_grad_()
    grad = (1 + torch.randn(2203, 10, 8, generator=generator)).to(dtype)
    with Operations() as seen:
        packing.repeated(x).backward(grad)
    assert not [name for name, kinds in seen.done if "index_add" in name and kinds & {torch.bfloat16, torch.float16}]
    parts = [part.double().sum(0) for part in grad.split(packing.lengths)]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.stack(parts).to(dtype), rtol=1e-5 if dtype == torch.float32 else 2**-8, atol=1e-5)


def test_a_sum_is_the_same_on_every_device() -> None:
    """By segments on a GPU, by another way here, four times as fast: no bit differs."""
    packing = Packing((1500, 3, 0, 700), torch.device("cpu"))
    for shape in ((), (10,), (10, 10)):
        x = torch.randn(2203, *shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(packing.sum(x), torch.segment_reduce(x, "sum", lengths=packing.counts))


@pytest.mark.parametrize("name", ["wav2vec2, layer norm", "wavlm, layer norm", "whisper"])
def test_attention_copies_nothing_to_leave_its_batch_of_one(name: str) -> None:
    """`x[0]` is a fill with zeros and a copy in every backward pass. (WavLM's two a layer are of the gate's parameter.)"""
    counts = []
    for layers in (1, 3):
        config = ENCODERS[name].config or {}
        key = "encoder_layers" if name == "whisper" else "num_hidden_layers"
        model = build_classifier(ENCODERS[name].model_copy(update={"config": {**config, key: layers}}), 4, seed=0).train()
        with Operations() as seen:
            model(*batch(clips(9_000, 8_000)))["emotion"].sum().backward()
        counts.append(sum("select_backward" in operation for operation, _ in seen.done))
    assert counts[1] - counts[0] == (4 if "wavlm" in name else 0)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operations below autograd, each with its tensors' types."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done: list[tuple[str, set[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.done.append((str(func), {leaf.dtype for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}))
        return func(*args, **(kwargs or {}))
