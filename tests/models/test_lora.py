"""LoRA and DoRA train in every family, packed and padded; merged they are the same model; misuse is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.tiny import CONFIGS, ENCODERS, OTHER_ENCODERS, batch, clips

from ser_hpc.config.adapters import LoraSettings
from ser_hpc.config.load import load_settings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.models.adapters import merge_lora
from ser_hpc.models.classifier import Classifier, build_classifier
from ser_hpc.models.size import model_size

FAMILIES = ENCODERS | OTHER_ENCODERS


def with_lora(name: str, **changes: Any) -> Classifier:
    settings = FAMILIES[name].model_copy(update={"adapter": LoraSettings(rank=3, **changes)})
    return build_classifier(settings, 4, seed=5)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_all_of_it_trains_and_merged_it_is_the_same(name: str, dora: bool) -> None:
    model, given = with_lora(name, dora=dora).train(), batch(clips(9000, 7000))
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert {key.split(".")[0] for key in trained} == {"encoder", "head"}
    assert all("lora_" in key for key in trained if key.startswith("encoder."))
    attended = {key.split(".lora_")[0].rpartition(".")[2] for key in trained if ".lora_" in key}
    assert len(attended) >= 6 or name.startswith("sew-d"), f"attention's four and the feed-forward's two: {attended}"
    with torch.no_grad():  # as after some steps: at first the second matrix is zero
        for key, parameter in trained.items():
            if "lora_B" in key:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(key)))
    model(*given)["emotion"].square().sum().backward()
    assert [key for key, p in trained.items() if p.grad is None or not p.grad.abs().sum()] == []
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)
    model.eval()
    with torch.no_grad():
        before = model(*given)["emotion"]
        merge_lora(model.encoder)
        torch.testing.assert_close(model(*given)["emotion"], before, rtol=1e-5, atol=1e-5)
    plain = build_classifier(FAMILIES[name], 4, seed=5)
    assert model.encoder.state_dict().keys() == plain.encoder.state_dict().keys()


@pytest.mark.parametrize("name", ["wavlm, layer norm", "whisper", "hubert"])
def test_at_first_it_changes_nothing_and_is_counted(name: str) -> None:
    model, plain, given = with_lora(name).eval(), build_classifier(FAMILIES[name], 4, seed=5).eval(), batch(clips(9000))
    with torch.no_grad():
        torch.testing.assert_close(model(*given)["emotion"], plain(*given)["emotion"])
    for dora in (False, True):
        built = with_lora(name, dora=dora)
        settings = FAMILIES[name].model_copy(update={"adapter": LoraSettings(rank=3, dora=dora)})
        size = model_size(settings, {"emotion": (settings.head, 4)}, 2.0)
        assert size.exact and size.parameters == sum(p.numel() for p in built.parameters())
        assert size.trained == sum(p.numel() for p in built.parameters() if p.requires_grad)


def test_where_it_goes_is_chosen_by_name() -> None:
    def places(**changes: Any) -> set[str]:
        model = with_lora("hubert", **changes)
        return {key.split(".lora_")[0] for key, _ in model.named_parameters() if ".lora_" in key}

    assert places(targets=("q_proj",)) == {f"encoder.encoder.layers.{i}.attention.q_proj" for i in range(2)}
    assert places(targets=("layers.1.*.v_proj",)) == {"encoder.encoder.layers.1.attention.v_proj"}
    with pytest.raises(UserError, match=r"has no linear layer qproj; its linear layers end in .*q_proj"):
        places(targets=("qproj", "v_proj"))
    frozen = EncoderModel(weights=None, config=CONFIGS["hubert"], freeze_layers=1, adapter=LoraSettings())
    names = {key for key, p in build_classifier(frozen, 4, 0).named_parameters() if "lora_" in key}
    assert names and all(".layers.1." in key for key in names)
    with pytest.raises(UserError, match="has no such layer that is not frozen"):
        build_classifier(frozen.model_copy(update={"freeze_layers": 2, "adapter": LoraSettings(targets=("q_proj",))}), 4, 0)
    with pytest.raises(UserError, match=r"model\.freeze_layers freezes all 2: freeze fewer"):
        build_classifier(frozen.model_copy(update={"freeze_layers": 2}), 4, 0)
    with pytest.raises(ConfigError, match=r"model\.adapter\.rank"):
        load_settings(None, ["model.adapter.kind=lora", "model.adapter.rank=0"])
