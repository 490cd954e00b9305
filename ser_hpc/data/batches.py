"""From positions to tensors: ragged batches, decoded ahead of the model by one thread.

A `Batch` is never padded: the clips' samples stand one after another. Collating is concatenating; whether an encoder pads,
sorts or packs is its own affair, on its own device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ser_hpc.data.order import MicroBatch
from ser_hpc.shards.read import ShardReader


@dataclass(frozen=True, slots=True)
class Batch:
    """`samples` (total,) int16 at 16 kHz; clip i is samples[offsets[i]:offsets[i+1]]; `offsets` (B + 1,) int64.

    `targets` by task name, (B,) int64; `weights` (B,) float32, 0 for a filler; `positions` (B,) rows of the index; `rows` (B,)
    places in the step or part, none of a filler; `number` is the micro-batch's number in its step, which seeds its dropout.
    """

    samples: Tensor
    offsets: Tensor
    targets: dict[str, Tensor]
    weights: Tensor
    positions: np.ndarray
    rows: np.ndarray
    number: int

    def __post_init__(self) -> None:
        assert all(a < b for a, b in pairwise(self.offsets.tolist())), "every clip has samples"


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Micro-batches to batches. `targets` and `weights` are columns over the whole index; clips are cut to `max_samples`."""

    reader: ShardReader
    targets: np.ndarray
    weights: np.ndarray
    max_samples: int | None = None

    def load(self, micro: MicroBatch) -> Batch:
        positions = micro.clips.positions
        clips = [self.reader.read(int(position))[: self.max_samples] for position in positions]
        ends = np.cumsum([0] + [len(clip) for clip in clips])
        weights = self.weights[positions] * (0.0 if micro.filler else 1.0)
        return Batch(
            samples=torch.from_numpy(np.concatenate(clips)),
            offsets=torch.from_numpy(ends),
            targets={"emotion": torch.from_numpy(self.targets[positions])},
            weights=torch.from_numpy(weights.astype(np.float32)),
            positions=positions,
            rows=micro.rows,
            number=micro.number,
        )

    def ahead(self, micros: Iterable[MicroBatch], depth: int = 4) -> Iterator[Batch]:
        """The batches of `micros` in order, up to `depth` of them decoded ahead in a thread (decoding releases the GIL)."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for micro in micros:
                    waiting.append(pool.submit(self.load, micro))
                    if len(waiting) > depth:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
