"""What each rank's process group is made of: one rank alone, ranks that see their own GPU only, ranks of torchrun."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small import curve, packed_tones, planned, train_on_ranks
from torch.distributed import HashStore

from ser_hpc.engine.distributed import world
from ser_hpc.engine.distributed.world import World
from ser_hpc.run.rank import Rank


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What process groups are asked for; none is made."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **how: asked.append({"backend": backend, **how}))
    return asked


def test_zero_trains_on_one_rank_as_alone(tmp_path: Path) -> None:
    """Every stage, without a process group that anybody else has made: DeepSpeed wants one."""
    shards = packed_tones(tmp_path)
    runs = [
        planned(tmp_path / name, shards, "train.epochs=1", "model.dropout=0.0", f"train.strategy={name}")
        for name in ("ddp", "zero1", "zero2", "zero3")
    ]
    train_on_ranks(runs, ranks=1)
    alone, *others = map(curve, runs)
    assert all(np.abs(other - alone).max() < 1e-6 for other in others)


def test_deepspeed_hears_of_the_gpu_that_this_process_sees() -> None:
    """It makes LOCAL_RANK the current device: the second task of a node may see its own GPU alone, as the first."""
    own, shared = (World(1, 2, 1, 2, torch.device("cuda", index)).environment for index in (0, 1))
    assert (own["LOCAL_RANK"], shared["LOCAL_RANK"]) == ("0", "1")
    assert own["RANK"] == "1" and own["WORLD_SIZE"] == own["LOCAL_SIZE"] == "2"
    assert World(3, 4, 1, 2, torch.device("cpu")).environment["LOCAL_RANK"] == "1"


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_group_is_bound_to_its_gpu(opened: list[dict[str, Any]], kind: str) -> None:
    device = torch.device(kind, 3) if kind == "cuda" else torch.device(kind)
    world.need_group(World(0, 1, 0, 1, device))
    (group,) = opened
    assert (group["backend"], group["device_id"]) == (("nccl", device) if kind == "cuda" else ("gloo", None))
    assert (group["rank"], group["world_size"]) == (0, 1)


def test_ranks_speak_over_the_network_on_which_they_met(
    opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And not over that which the machine's own name happens to stand for; unless the user chose one."""
    sought: list[str] = []
    monkeypatch.setattr(world, "_choose_interface", sought.append)
    monkeypatch.setattr(world, "meet_ranks", lambda place, rank, patience: (HashStore(), "node7"))
    world.join_world(tmp_path, Rank(0, 2, 0, 2), timedelta(minutes=1))
    assert sought == ["node7"] and len(opened) == 1
