"""Compute one optimizer step's gradients on this rank, for the training loop: micro-batch by micro-batch, forward and backward.

What the loss is: objective.py. Nothing in here waits for the GPU: what comes out stays there, and what goes in comes from
pinned memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ser_hpc.data.batches import Batch
from ser_hpc.data.sampler import ClipSelection, mix_seed
from ser_hpc.engine import gpu
from ser_hpc.engine.distributed.strategy import Strategy
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.objective import Objective, StepTerms
from ser_hpc.models.norms import RunningStatistics
from ser_hpc.models.packed import to_device


def accumulate_gradients(
    strategy: Strategy,
    objective: Objective,
    batches: Sequence[Batch],
    clips: ClipSelection,
    seed: tuple[int, int],
    world: World,
    statistics: RunningStatistics,
) -> Tensor | None:
    """Add up the gradients of the step's loss.

    `clips`: the step's; `seed`: the trial's, and the step's number, from which each micro-batch's dropout is
    drawn, on whatever rank; `statistics` take in each. Returns (tasks + 1, clips) float32 on the device: the loss of each of
    this rank's clips by each task, and last what is wrong with it (CorruptionCause, or 0); zeros for the clips of other ranks.
    None if memory ran out: what there is of gradients is worthless.
    """
    device = world.device
    per_clip_loss = torch.zeros(len(objective.terms) + 1, len(clips), device=device)
    statistics.begin()
    try:
        of_step = objective.begin_step(strategy.forward, batches, clips, seed, world)
        for turn, batch in enumerate(batches, start=1):
            _seed_dropout(mix_seed(*seed, batch.number), device)
            last = turn == len(batches)
            losses = _forward_backward(strategy, objective, batch, of_step, device, last=last)
            if len(batch.rows):  # else a filler
                statistics.add(len(batch.rows))
                wrong = to_device(batch.damaged, device)
                found = torch.cat([losses.masked_fill(wrong > 0, 0), wrong.to(per_clip_loss)[None]])
                per_clip_loss[:, to_device(torch.from_numpy(batch.rows), device)] = found
        return per_clip_loss
    except RuntimeError as error:
        if not gpu.is_out_of_memory(error):
            raise
        print(str(error).partition("\n")[0], file=sys.stderr, flush=True)
    strategy.join_pending_collectives()  # here, where the error no longer holds what it ran out of
    return None


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what draws on `device`. On a CPU its generator alone: torch would note for all GPUs, with a stack, what they missed,
    which takes as long as a small head's forward pass."""
    generator = torch.default_generator if device.type == "cpu" else torch
    generator.manual_seed(seed)


def _forward_backward(
    strategy: Strategy,
    objective: Objective,
    batch: Batch,
    of_step: StepTerms,
    device: torch.device,
    *,
    last: bool,
) -> Tensor:
    """Add one micro-batch's gradients. Returns the loss of each clip by each task, (tasks, B)."""
    outputs = strategy.forward(to_device(batch.samples, device), batch.offsets, last=last)
    loss, each = objective.loss(outputs, batch, of_step)
    strategy.backward(loss)
    return each
