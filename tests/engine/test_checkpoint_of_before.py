"""A checkpoint that an earlier version wrote, with other names in it, is gone on from as if this one had written it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.engine.distributed.strategy import TrainTensors
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.fault import checkpoint
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.memory.budget import Budget, Hardware
from ser_hpc.run.run_dir import AttemptDir, RunDir, Trial

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def as_of_before(attempt: AttemptDir, step: int) -> None:
    """Give marker and tensors the names that they had."""
    marker = attempt.checkpoints / f"step_{step:08d}.json"
    path, saved = marker.with_suffix(".safetensors"), read_json(marker)
    budget = saved["state"]["budget"]
    place = {"words": budget["hardware"]["description"], "room": budget["hardware"]["free_bytes"]}
    again, lowered = budget["activation_checkpointing"], budget["reduced"]
    saved["state"]["budget"] = {"samples": budget["samples"], "again": again, "place": place, "lowered": lowered}
    state = saved["state"]
    state["stale_epochs"] = state.pop("stale_evaluations")
    del state["evaluation"], state["best_evaluation"], saved["late_updates"]
    flat = {name.replace("ema/", "average/"): tensor for name, tensor in load_file(path).items()}
    assert "average/w" in flat
    write_json(marker, saved | {"sha256": checkpoint.save_weights(path, flat)})


def test_it_is_gone_on_from(tmp_path: Path) -> None:
    trial = RunDir(tmp_path).trial(Trial(0, 0))
    attempt = trial.claim()
    budget = Budget(8, True, Hardware("1 x H100, ddp", 7e10), reduced=True)
    best = checkpoint.save_weights(attempt.best(1), {"w": torch.zeros(2)})
    counts = {"epoch": 3, "evaluation": 3, "best_epoch": 1, "best_evaluation": 1, "stale_evaluations": 1}
    state = TrainState(step=3, budget=budget, best_sha256=best, **counts)
    parts = [{"w": torch.full((2,), float(number))} for number in range(4)]
    with checkpoint.Writer(trial, attempt) as writer:
        writer.save(state, TrainTensors(*parts[:3], updates=3, ema=parts[3]))
    now = checkpoint.restore(trial, trial.claim(), ALONE)
    as_of_before(attempt, 3)
    before = checkpoint.restore(trial, trial.claim(), ALONE)
    for saved in (now, before):
        assert (saved.state, saved.attempt, saved.damaged) == (state, attempt, ())
        assert saved.tensors is not None and torch.equal(saved.tensors.ema["w"], parts[3]["w"])
        assert torch.equal(saved.tensors.exp_avg_sq["w"], parts[2]["w"])
