"""Predict a part, for the training loop: every clip in exactly one micro-batch of one rank, gathered by clip, no fillers.

The micro-batches are cut by the budget alone, so a clip's outputs do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ser_hpc.data.batches import Source
from ser_hpc.data.sampler import BatchSpec, ShardOrder, evaluation_micro_batches
from ser_hpc.engine.distributed.world import World
from ser_hpc.models.packed import to_device


@torch.no_grad()
def predict(
    forward: Callable[[Tensor, Tensor], dict[str, Tensor]],
    source: Source,
    positions: np.ndarray,
    samples: np.ndarray,
    spec: BatchSpec,
    widths: Mapping[str, int],
    world: World,
    order: ShardOrder | None = None,
) -> dict[str, np.ndarray]:
    """Compute the outputs of the clips at `positions` by task, float32 (len(positions), width), on every rank.

    `widths`: of each task's outputs; `samples`: what every clip of the index takes of the budget of `spec`;
    `order`: in which they are read.
    """
    found = {task: torch.zeros(len(positions), width, device=world.device) for task, width in widths.items()}
    times = torch.zeros(len(positions), device=world.device)
    micros = evaluation_micro_batches(positions, samples[positions], spec, world.rank, order)
    for batch in source.prefetch(micros):
        outputs = forward(to_device(batch.samples, world.device), batch.offsets)
        if len(batch.rows):  # else a filler
            rows = to_device(torch.from_numpy(batch.rows), world.device)
            for task, of_task in found.items():
                of_task[rows] = outputs[task].float()
            times[rows] += 1
    # Each row is zero on all ranks but one: the sum is exact, and nothing that was pickled crosses the network.
    for of_task in found.values():
        world.sum_over_ranks(of_task)
    world.sum_over_ranks(times)
    assert bool((times == 1).all()), "every clip is predicted exactly once"
    return {task: of_task.cpu().numpy() for task, of_task in found.items()}
