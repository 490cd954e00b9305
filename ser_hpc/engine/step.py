"""Compute one optimizer step's gradients on this rank, for the training loop: micro-batch by micro-batch, forward and backward.

A step's loss is the sum over its clips of weight times loss, divided by the sum of their weights. These are known before it
starts, on every rank, so no rank has to wait for another's to scale its gradients. Nothing in here waits for the GPU: what
comes out stays there, and what goes in comes from pinned memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_hpc.data.batches import Batch
from ser_hpc.data.sampler import mix_seed
from ser_hpc.engine import gpu
from ser_hpc.engine.distributed.strategy import Strategy
from ser_hpc.models.norms import RunningStatistics
from ser_hpc.models.packed import to_device


def accumulate_gradients(
    strategy: Strategy,
    batches: Sequence[Batch],
    clips: int,
    weight: float,
    seed: tuple[int, int],
    device: torch.device,
    statistics: RunningStatistics,
) -> Tensor | None:
    """Add up the gradients of the step's loss: the sum over clips of weight times loss, divided by `weight`, the step's own.

    `clips`: how many the step has; `seed`: the trial's, and the step's number, from which each micro-batch's dropout is drawn,
    on whatever rank; `statistics` take in each. Returns (2, clips) float32 on the device: the loss of each of this rank's
    clips, and what is wrong with it (CorruptionCause, or 0); zeros for the clips of other ranks. None if memory ran
    out: what there is of gradients is worthless.
    """
    per_clip_loss = torch.zeros(2, clips, device=device)
    statistics.begin()
    try:
        for turn, batch in enumerate(batches, start=1):
            torch.manual_seed(mix_seed(*seed, batch.number))
            losses = _forward_backward(strategy, batch, weight, device, last=turn == len(batches))
            if len(batch.rows):  # else a filler
                statistics.add(len(batch.rows))
                wrong = to_device(batch.damaged, device)
                found = torch.stack([losses.masked_fill(wrong > 0, 0), wrong.to(per_clip_loss)])
                per_clip_loss[:, to_device(torch.from_numpy(batch.rows), device)] = found
        return per_clip_loss
    except RuntimeError as error:
        if not gpu.is_out_of_memory(error):
            raise
        print(str(error).partition("\n")[0], file=sys.stderr, flush=True)
    strategy.join_pending_collectives()  # here, where the error no longer holds what it ran out of
    return None


def _forward_backward(strategy: Strategy, batch: Batch, weight: float, device: torch.device, *, last: bool) -> Tensor:
    """Add one micro-batch's gradients. Returns the loss of each clip, (B,)."""
    outputs = strategy.forward(to_device(batch.samples, device), batch.offsets, last=last)
    losses = clip_losses(outputs, batch.targets)
    strategy.backward((losses * to_device(batch.weights, device)).sum() / weight)
    return losses.detach()


def clip_losses(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Compute the cross-entropy of each clip, (B,) float32."""
    logits = outputs["emotion"]
    return F.cross_entropy(logits.float(), to_device(targets["emotion"], logits.device), reduction="none")
