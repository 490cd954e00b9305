"""Memory: its model predicts what is measured, the budget follows from it, and looking for it leaves no trace."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from models.tiny import ACRNN, ENCODERS
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ser_hpc.config.settings import AcrnnModel, EncoderModel, Settings, TrainSettings
from ser_hpc.core.errors import UserError
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.memory.budget import Budget, Hardware
from ser_hpc.engine.memory.model import Activations, BudgetRange, static_bytes
from ser_hpc.engine.memory.peak import peak_bytes
from ser_hpc.engine.memory.search import CPU_SECONDS, Probe, find_budget, first, search_budget
from ser_hpc.models import checkpointing
from ser_hpc.models.classifier import Classifier, build_classifier

RATE = 16_000
CPU = torch.device("cpu")
ALONE = World(0, 1, 0, 1, CPU)
FP32 = TrainSettings(precision="fp32")
CLIPS = np.array([RATE * seconds // 2 for seconds in (1, 2, 3, 4, 3, 2)])  # 7.5 s


def encoder(name: str, **changes: Any) -> Classifier:
    return build_classifier(ENCODERS[name].model_copy(update=changes), 4, seed=0)


def passed(model: Classifier, lengths: list[int]) -> Tensor:
    """A forward and a backward pass over clips of noise; the logits."""
    samples = torch.randint(-3000, 3000, (sum(lengths),), dtype=torch.int16, generator=torch.Generator().manual_seed(3))
    logits = model(samples, torch.tensor([0, *accumulate(lengths)]))["emotion"]
    logits.square().sum().backward()
    return logits.detach()


def room(model: Classifier, train: TrainSettings, seconds: float, again: bool = False) -> float:
    """Bytes in which micro-batches of about so many seconds fit."""
    activations = Probe(model, train, CPU, again).activations(int(CLIPS.max()))
    assert activations
    return static_bytes(model, train, 1) + activations.bytes(seconds) + 1


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_larger_batch_is_predicted(name: str, again: bool) -> None:
    """From few clips to three times as much audio: to 2 %."""
    probe = Probe(encoder(name), FP32, CPU, again)
    activations = probe.activations(2 * RATE)
    assert activations and activations.bytes(24) == pytest.approx(probe.peak([2 * RATE] * 12), rel=0.02)


def test_shorter_clips_need_no_more_than_the_longest() -> None:
    """WavLM's position biases grow with the square of a clip's length: the worst case is a batch full of the longest."""
    probe = Probe(encoder("wavlm, layer norm"), FP32, CPU, False)
    activations = probe.activations(8 * RATE)
    assert activations and activations.bytes(16) > 1.05 * probe.peak([2 * RATE] * 8)


def test_the_count_is_what_the_profiler_sees() -> None:
    """Tensor by tensor, as the CPU's allocator had it; the same whether products are computed or not."""
    model = encoder("wav2vec2, layer norm").train()
    passed(model, [RATE])  # the gradients are there before and after
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        passed(model, [RATE] * 6)
    events: Any = seen.profiler
    sizes = [event.nbytes() for event in sorted(events.kineto_results.events(), key=lambda event: event.start_ns())]
    counted = peak_bytes(lambda: passed(model, [RATE] * 6), CPU)
    assert counted == pytest.approx(max(accumulate(sizes)), rel=0.01)
    assert counted == peak_bytes(lambda: passed(model, [RATE] * 6), CPU, shapes_only=True)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ENCODERS)
def test_checkpointing_changes_no_bit(name: str, dropout: float) -> None:
    """Logits and every gradient, whatever is dropped."""
    model = encoder(name, dropout=dropout).train()
    again = copy.deepcopy(model)
    checkpointing.enable(again)
    logits = []
    for one in (model, again):
        torch.manual_seed(5)
        logits.append(passed(one, CLIPS.tolist()))
    assert torch.equal(*logits)
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients and all(torch.equal(gradients[key], again.get_parameter(key).grad) for key in gradients)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["wav2vec2, layer norm", "wavlm, group norm"])
def test_checkpointing_saves_memory(name: str) -> None:
    """In the stem and in the layers: of an encoder with many, most of what they keep."""
    config = {**(ENCODERS[name].config or {}), "num_hidden_layers": 12}
    plain, saving = (
        Probe(build_classifier(EncoderModel(weights=None, config=config, dropout=0.0), 4, 0), FP32, CPU, again).peak([RATE] * 4)
        for again in (False, True)
    )
    assert saving < plain / 2


def test_a_budget_follows_the_free_memory() -> None:
    """More free memory never means less audio; never more than a step has, never less than what will do."""
    wanted, activations = BudgetRange(min_seconds=7.3, max_seconds=212.0), Activations(fixed_bytes=2e9, bytes_per_second=0.1e9)
    budgets = [wanted.budget(activations.seconds(free * 1e8)) for free in range(300)]
    enough = budgets[28:]  # 2.8 GB: 8 s
    assert budgets[:28] == [None] * 28 and enough[0] == 7.3 and enough[-1] == 212
    assert enough == sorted(enough, key=lambda budget: budget or 0)
    assert all(activations.bytes(budget or 0) <= free * 1e8 for free, budget in enumerate(budgets[28:], start=28))


def test_checkpointing_only_where_memory_demands_it(capsys: pytest.CaptureFixture[str]) -> None:
    model, train = encoder("wav2vec2, layer norm"), TrainSettings(precision="fp32", global_batch=4)
    whole = 6.0  # seconds: the four longest clips
    assert search_budget(model, train, CLIPS, ALONE, room(model, train, 100)) == whole * RATE
    assert search_budget(model, train, CLIPS, ALONE, room(model, train, 3)) == 2 * RATE
    assert not any(module.gradient_checkpointing for module in model.modules() if hasattr(module, "gradient_checkpointing"))
    search_budget(model, train, CLIPS, ALONE, room(model, train, 2, again=True))
    assert any(module.gradient_checkpointing for module in model.modules() if hasattr(module, "gradient_checkpointing"))
    said = capsys.readouterr().out.splitlines()
    assert ["all that a step has" in line for line in said] == [True, False, False]
    assert [line.endswith("with activation checkpointing") for line in said] == [False, False, True]


@pytest.mark.parametrize("allowed", ["never", "auto"])
def test_too_little_memory_is_refused_in_words(allowed: Any) -> None:
    model = encoder("wav2vec2, layer norm")
    train = TrainSettings(precision="fp32", activation_checkpointing=allowed)
    few = room(model, train, 1.5, again=allowed == "auto")
    with pytest.raises(UserError, match=r"2\.0 s of audio, needs .* \(data.max_seconds\)"):
        search_budget(model, train, CLIPS, ALONE, few)


def test_what_accumulation_cuts_must_fit() -> None:
    """With a given number of micro-batches their largest is what counts, not the longest clip."""
    model, train = (
        encoder("wav2vec2, layer norm"),
        TrainSettings(precision="fp32", global_batch=4, accumulation=1, activation_checkpointing="never"),
    )
    with pytest.raises(UserError, match=r"accumulation cuts it, 6\.0 s"):
        search_budget(model, train, CLIPS, ALONE, room(model, train, 4))
    assert search_budget(model, train, CLIPS, ALONE, room(model, train, 6.1)) == 6 * RATE


def test_a_group_that_is_normalised_together_must_fit() -> None:
    """Its longest clips, padded: never divided, so never less; and more is of no use."""
    model, train = (
        build_classifier(ACRNN.model_copy(update={"norm_group": 3}), 4, 0),
        TrainSettings(precision="fp32", global_batch=5),
    )
    assert search_budget(model, train, CLIPS, ALONE, room(model, train, 100)) == 3 * 2 * RATE
    with pytest.raises(UserError, match=r"a group of the longest clips.* 6\.0 s"):
        search_budget(model, train, CLIPS, ALONE, room(model, train, 4))


def test_idle_ranks_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step has fewer groups than ranks."""
    monkeypatch.setattr(World, "any_rank", lambda self, *flags: flags)
    acrnn = ACRNN.model_copy(update={"norm_group": 3})
    model, settings = build_classifier(acrnn, 4, 0), Settings(model=acrnn)
    find_budget(model, settings, CLIPS, replace(ALONE, size=11), None)
    assert not capsys.readouterr().out
    find_budget(model, settings, CLIPS, replace(ALONE, size=12), None)
    assert "1 of 12 ranks are idle: a step of 32 clips is 11 of the groups" in capsys.readouterr().out


def test_ranks_take_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever's memory is too small, no rank is left waiting."""
    model, train = encoder("wav2vec2, layer norm"), TrainSettings(precision="fp32", global_batch=8)
    two = replace(ALONE, size=2)
    monkeypatch.setattr(World, "min_over_ranks", lambda self, number: min(number, 40_000))
    monkeypatch.setattr(World, "any_rank", lambda self, *flags: flags)
    assert search_budget(model, train, CLIPS, two, room(model, train, 100)) == 40_000
    monkeypatch.setattr(World, "any_rank", lambda self, *flags: (True, True))
    with pytest.raises(UserError, match="another rank"):
        search_budget(model, train, CLIPS, two, room(model, train, 100))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR")])
def test_running_out_of_memory_lowers_the_budget(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    """Where the model of memory promised too much; and at last it is refused in words."""
    model, train = (
        encoder("wav2vec2, layer norm"),
        TrainSettings(precision="fp32", global_batch=6, activation_checkpointing="never"),
    )
    forward, most = Classifier.forward, [4.0]

    def limited(self: Classifier, samples: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        if len(samples) > most[0] * RATE:
            raise error
        return forward(self, samples, offsets)

    monkeypatch.setattr(Classifier, "forward", limited)
    monkeypatch.setattr(Probe, "activations", lambda *_: Activations(0.0, 1.0))
    budget = search_budget(model, train, CLIPS, ALONE, 1e12) / RATE
    assert sum(first(np.sort(CLIPS)[::-1], budget, padded=False)) <= 4 * RATE < 7.5 * RATE and budget >= 2
    most[0] = 1.0
    with pytest.raises(UserError, match="needs"):
        search_budget(model, train, CLIPS, ALONE, 1e12)


@pytest.mark.parametrize("settings", [ENCODERS["wavlm, layer norm"].model_copy(update={"dropout": 0.1}), ACRNN])
def test_the_search_leaves_no_trace(settings: EncoderModel | AcrnnModel) -> None:
    """Weights, buffers (BatchNorm's statistics), gradients, random state: all as before."""
    model, train = build_classifier(settings, 4, seed=0), TrainSettings(precision="fp32", global_batch=4)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    search_budget(model, train, CLIPS, ALONE, 1e12)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_what_stands_is_divided_over_ranks() -> None:
    """DDP in fp32: 16 bytes a parameter; frozen ones have weights alone; ZeRO's share falls with the ranks."""
    model = encoder("wav2vec2, layer norm")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert static_bytes(model, FP32, 8) == 16 * count
    assert static_bytes(model, TrainSettings(precision="fp32", ema_decay=0.9), 8) == 20 * count
    for name in ("zero1", "zero2", "zero3"):
        train = TrainSettings.model_validate({"strategy": name, "precision": "bf16"})
        assert static_bytes(model, train, 8) < static_bytes(model, train, 2)
    frozen = encoder("wav2vec2, layer norm", freeze="encoder")
    trained = sum(parameter.numel() for parameter in frozen.head.parameters())
    assert static_bytes(frozen, FP32, 1) == 4 * count + 12 * trained


def test_a_given_budget_is_taken() -> None:
    """And on a CPU nothing is searched."""
    model = encoder("whisper")
    assert find_budget(model, Settings(), CLIPS, ALONE).samples == CPU_SECONDS * RATE
    given = Settings.model_validate({"train": {"budget_seconds": 12.5, "activation_checkpointing": "always"}})
    found = find_budget(model, given, CLIPS, ALONE)
    assert (found.samples, found.activation_checkpointing) == (12.5 * RATE, True)
    with pytest.raises(UserError, match="no layers"):
        find_budget(build_classifier(ACRNN, 4, 0), given, CLIPS, ALONE)


def test_a_trial_keeps_its_budget_where_there_is_as_much_memory() -> None:
    """And finds another with other GPUs, less memory, or a budget given anew."""
    model, given = encoder("whisper"), Settings.model_validate({"train": {"budget_seconds": 12.5}})
    reduced = replace(find_budget(model, given, CLIPS, ALONE), samples=3 * RATE, reduced=True)
    assert find_budget(model, given, CLIPS, ALONE, reduced) == reduced
    assert find_budget(model, Settings(), CLIPS, ALONE, reduced).samples == CPU_SECONDS * RATE
    assert Budget.from_json(json.loads(json.dumps(asdict(reduced)))) == reduced
    here = Hardware("2 x H200, ddp", 100e9)
    assert here.is_like(replace(here, free_bytes=101e9)) and here.is_like(replace(here, free_bytes=50e9))
    assert not here.is_like(replace(here, free_bytes=110e9)) and not here.is_like(replace(here, description="1 x H200, ddp"))


def test_a_budget_that_an_earlier_version_saved_is_read() -> None:
    saved = {"samples": 8, "again": True, "place": {"words": "1 x H100, ddp", "room": 7e10}, "lowered": True}
    assert Budget.from_json(saved) == Budget(8, True, Hardware("1 x H100, ddp", 7e10), reduced=True)
