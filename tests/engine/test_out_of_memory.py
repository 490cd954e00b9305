"""Memory runs out on one rank in the middle of a step: all ranks make it again with the same clips, cut smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine.test_resume import EVERY_STEP, lines, wait_for_step
from small import curve, packed_tones, planned, run_here
from test_attempts import start

from ser_hpc.core.errors import UserError
from ser_hpc.data.sampler import BatchSpec, reduce_budget, split_micro_batches
from ser_hpc.run.run_dir import RunDir, Trial

TRIAL = Trial(0, 0)
# On the last rank memory runs out at these steps: in a forward pass, and in a backward pass of which DDP has already reduced
# some gradients (its buckets are made small enough for there to be several).
RUNS_OUT = """
import functools, os
import torch
from ser_hpc.core import cli as console
from ser_hpc import train
from ser_hpc.engine.distributed import ddp
from ser_hpc.engine import loop, objective
where = {3: "forward", 6: "backward"} if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1) else {}
ddp.DistributedDataParallel = functools.partial(ddp.DistributedDataParallel, bucket_cap_mb=0.01)
now = None
def run_out(place):
    global now
    if now == place:
        now = None
        if place == "forward":
            raise RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR, for a test")
        raise torch.OutOfMemoryError("CUDA out of memory, for a test")
def gradients(*given, real=loop.accumulate_gradients):
    global now
    now = where.pop(given[4][1], None)
    return real(*given)
def loss(*given, real=objective.Objective.loss):
    run_out("forward")
    return real(*given)
def build(*given, real=loop.build_for_tasks, **more):
    model = real(*given, **more)
    stem = model.encoder.feature_extractor.conv_layers[-1]
    stem.conv.weight.register_hook(lambda grad: run_out("backward"))
    return model
loop.accumulate_gradients, objective.Objective.loss, loop.build_for_tasks = gradients, loss, build
console.run_main(train.main)
"""
SMALL = ("train.epochs=3", "model.dropout=0.0", "train.budget_seconds=8")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_step_is_made_again_with_the_same_clips(base: Path, ranks: int) -> None:
    """The loss of every step is the one of a run whose memory sufficed."""
    enough = planned(base / f"enough-{ranks}", packed_tones(base), *SMALL)
    short = planned(base / f"short-{ranks}", packed_tones(base), *SMALL)
    assert run_here(enough, TRIAL, ranks=ranks) == {TRIAL: 0}
    outputs = ended(short, ranks)
    assert outputs[-1].count(", for a test") == 2
    assert outputs[0].count("made again") == 2
    assert np.abs(curve(short) - curve(enough)).max() < 1e-5


def test_killed_after_memory_ran_out_it_goes_on_as_cut_as_before(base: Path) -> None:
    """Dropout is drawn for each micro-batch: every loss, weight and prediction, bit for bit, needs the same ones."""
    told = ("train.epochs=3", "model.dropout=0.2", "train.budget_seconds=8", EVERY_STEP)
    whole, killed = (planned(base / name, packed_tones(base), *told) for name in ("whole", "killed"))
    ended(whole, 1)
    (process,) = start(killed, RUNS_OUT)
    wait_for_step(killed.trial(TRIAL), 8, process)
    process.kill()
    assert process.communicate()[0].count("made again") == 2
    assert run_here(killed, TRIAL) == {TRIAL: 0}  # where memory suffices
    one, other = (run.trial(TRIAL) for run in (whole, killed))
    assert lines(one.current.steps) == lines(other.current.steps)
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert one.current.predictions.read_bytes() == other.current.predictions.read_bytes()


def ended(run: RunDir, ranks: int) -> list[str]:
    processes = start(run, RUNS_OUT, ranks)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)[-4000:]
    return outputs


def test_each_cut_is_smaller_until_clips_are_alone() -> None:
    positions, samples = np.arange(7), np.array([9, 5, 5, 4, 3, 2, 1]) * 16_000
    how, sizes = BatchSpec(2, 40 * 16_000, accumulation=1), []
    with pytest.raises(UserError, match=r"single clip of 9\.0 s.*data\.max_seconds"):
        while True:
            sizes.append(max(samples[rows].sum() for rows in split_micro_batches(positions, samples, how)))
            how = reduce_budget(how, positions, samples)
    assert sizes == sorted(set(sizes), reverse=True) and len(sizes) > 1
