"""QLoRA: every family trains over four-bit weights, which are the same wherever they are made, counted, and widened to ship."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models.tiny import ENCODERS, OTHER_ENCODERS, batch, clips

from ser_hpc.config.adapters import QloraSettings
from ser_hpc.config.load import load_settings
from ser_hpc.config.settings import TrainSettings
from ser_hpc.core.errors import ConfigError
from ser_hpc.engine.frozen_params import FrozenParameters
from ser_hpc.engine.memory.model import static_bytes
from ser_hpc.models.adapters import merge_lora
from ser_hpc.models.classifier import Classifier, build_classifier
from ser_hpc.models.size import model_size

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'ser_hpc[qlora]'")
FAMILIES = ENCODERS | OTHER_ENCODERS


def with_qlora(name: str, **changes: Any) -> Classifier:
    settings = FAMILIES[name].model_copy(update={"adapter": QloraSettings(rank=3, **changes)})
    return build_classifier(settings, 4, seed=5)


@pytest.mark.parametrize("dora", [False, True], ids=["qlora", "with dora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_all_of_it_trains_and_widened_it_is_the_same(name: str, dora: bool) -> None:
    model, given = with_qlora(name, dora=dora).train(), batch(clips(9000, 7000))
    packed = {key for key, p in model.named_parameters() if p.dtype == torch.uint8}
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert len(packed) >= 6 and not packed & trained.keys()
    with torch.no_grad():  # as after some steps: at first the second matrix is zero
        for key, parameter in trained.items():
            if "lora_B" in key:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(key)))
    model(*given)["emotion"].square().sum().backward()
    assert [key for key, p in trained.items() if p.grad is None or not p.grad.abs().sum()] == []
    model.eval()
    with torch.no_grad():
        before, copied = model(*given)["emotion"], copy.deepcopy(model)
        torch.testing.assert_close(copied(*given)["emotion"], before, rtol=0, atol=0)  # as the search for a budget copies it
        merge_lora(model.encoder)
        torch.testing.assert_close(model(*given)["emotion"], before, rtol=1e-5, atol=1e-5)
    plain = build_classifier(FAMILIES[name], 4, seed=5).encoder.state_dict()
    shipped = model.encoder.state_dict()
    assert {key: tensor.dtype for key, tensor in shipped.items()} == {key: tensor.dtype for key, tensor in plain.items()}


def test_half_precision_computes_in_it() -> None:
    """Under autocast as DDP trains, and with parameters cast as ZeRO casts them: packed weights and their scales stay."""
    model, given = with_qlora("whisper").eval(), batch(clips(9000))
    with torch.no_grad():
        full = model(*given)["emotion"]
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(*given)["emotion"], full, rtol=0.1, atol=0.02)
        torch.testing.assert_close(model.to(torch.bfloat16)(*given)["emotion"].float(), full, rtol=0.1, atol=0.02)
    assert FrozenParameters.from_model(model).names


def test_the_base_is_named_by_its_values_and_scales() -> None:
    """Twice the same weights have the same name; doubled ones have the same packed values, and another name."""
    name = FrozenParameters.from_model(with_qlora("hubert")).sha256
    assert name == FrozenParameters.from_model(with_qlora("hubert")).sha256
    model = with_qlora("hubert")
    layer: Any = model.encoder.get_submodule("encoder.layers.0.attention.q_proj.base_layer")
    layer.weight.quant_state.offset *= 2
    assert FrozenParameters.from_model(model).sha256 != name


@pytest.mark.parametrize("name", ["wavlm, layer norm", "whisper", "hubert"])
def test_what_it_takes_is_counted(name: str) -> None:
    settings = FAMILIES[name].model_copy(update={"adapter": QloraSettings(rank=3)})
    model, size = with_qlora(name), model_size(settings, {"emotion": (settings.head, 4)}, 2.0)
    parameters = list(model.parameters())
    packed = sum(p.numel() for p in parameters if p.dtype == torch.uint8)
    wide = sum(p.numel() for p in parameters if p.dtype != torch.uint8)
    assert size.exact and size.four_bit == 2 * packed and size.parameters == wide + 2 * packed
    assert size.trained == sum(p.numel() for p in parameters if p.requires_grad)
    train = TrainSettings(precision="fp32")
    assert static_bytes(model, train, 1) == pytest.approx(4 * wide + 1.032 * packed + 12 * size.trained, rel=1e-3)


def test_zero3_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"zero3 splits weights over ranks.*use ddp, zero1 or zero2"):
        load_settings(None, ["model.adapter.kind=qlora", "train.strategy=zero3"])
    load_settings(None, ["model.adapter.kind=qlora", "model.adapter.rank=4", "train.strategy=zero2"])
