"""How DDP is set up, on a process group of one rank: gradients live once, inputs stay where they are."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models.tiny import ENCODERS, batch, clips
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ser_hpc.config.settings import TrainSettings
from ser_hpc.engine.distributed import ddp
from ser_hpc.engine.distributed.ddp import DdpStrategy, GradientBuckets
from ser_hpc.engine.distributed.world import World, need_group
from ser_hpc.models.classifier import build_classifier

CPU = torch.device("cpu")
GIVEN = batch(clips(8_000, 5_000))


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[DdpStrategy]:
    """One rank that takes itself for the first of two; several small buckets, as a large model has."""
    need_group(World(0, 1, 0, 1, CPU))
    monkeypatch.setattr(ddp, "DistributedDataParallel", functools.partial(DistributedDataParallel, bucket_cap_mb=0.01))
    model = build_classifier(ENCODERS["wavlm, group norm"], 4, seed=0)
    yield DdpStrategy(model, TrainSettings(precision="fp32"), World(0, 2, 0, 2, CPU), None)
    dist.destroy_process_group()


def backward(ranks: DdpStrategy, *, last: bool) -> None:
    ranks.backward(ranks.forward(*GIVEN, last=last)["emotion"].square().sum())


def test_gradients_live_in_the_buckets_alone(ranks: DdpStrategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """While micro-batches add up, too: gradients of their own would be as large as the model once more."""
    buckets: set[int] = set()

    def reduce(self: GradientBuckets, bucket: Any, real: Any = GradientBuckets.reduce) -> Any:
        buckets.add(bucket.buffer().untyped_storage().data_ptr())
        return real(self, bucket)

    monkeypatch.setattr(GradientBuckets, "reduce", reduce)
    ranks.train_mode(True)
    for step in range(3):
        backward(ranks, last=False)
        if step == 2:  # DDP arranges its buckets anew after the first step
            gradients = [p.grad for p in ranks.module.parameters() if p.requires_grad]
            assert {grad.untyped_storage().data_ptr() for grad in gradients if grad is not None} <= buckets
            assert len(buckets) > 2 and all(grad is not None and bool(grad.any()) for grad in gradients)
        buckets.clear()
        backward(ranks, last=True)
        ranks.step(1e-4)


def test_after_memory_ran_out_the_old_buckets_go_first(ranks: DdpStrategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the step made again finds what any other does: gradients at zero, in the buckets."""
    old = weakref.ref(ranks._parallel)  # type: ignore[arg-type]
    seen = []

    def new(module: nn.Module, **how: Any) -> DistributedDataParallel:
        seen.append(old() is None)
        return DistributedDataParallel(module, **how)

    ranks.train_mode(True)
    for _ in range(2):
        backward(ranks, last=True)
        ranks.step(0.0)
    ranks.forward(*GIVEN, last=True)
    backward(ranks, last=False)
    monkeypatch.setattr(ddp, "DistributedDataParallel", new)
    ranks.discard_step()
    assert seen == [True]
    gradients = [p.grad for p in ranks.module.parameters() if p.requires_grad]
    assert not any(grad is None or grad.any() for grad in gradients)
    assert len({grad.untyped_storage().data_ptr() for grad in gradients if grad is not None}) == 1


def test_the_offsets_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `device_ids` DDP moves every input to the GPU, and the model then waits to have the offsets back."""
    asked: dict[str, Any] = {}

    class Spy:
        def __init__(self, module: nn.Module, **how: Any) -> None:
            asked.update(how)

        def register_comm_hook(self, state: object, hook: object) -> None: ...

    monkeypatch.setattr(ddp, "DistributedDataParallel", Spy)
    DdpStrategy(nn.Linear(2, 2), TrainSettings(precision="fp32"), World(0, 2, 0, 2, torch.device("cuda", 0)), None)
    assert asked["gradient_as_bucket_view"] and not asked.get("device_ids")
