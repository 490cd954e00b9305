"""What each step came to, read a step late: its numbers travel from the GPU while the next step is under way.

So the CPU is always a step ahead, and the GPU never waits for it. Before a checkpoint, and at an epoch's end, all is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Entry:
    """A step: its clips (n,) by position, what it learnt from (`weight`) and how fast (`lr`).

    `told` (2, n): every clip's loss, and what is wrong with it; `norm` (): of the gradient; both underway to the CPU until
    `there` has come.
    """

    clips: np.ndarray
    weight: float
    lr: float
    told: Tensor
    norm: Tensor
    there: torch.cuda.Event | None


class Ledger:
    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()

    def add(self, clips: np.ndarray, weight: float, lr: float, told: Tensor, norm: Tensor) -> None:
        """`told` and `norm` on their device."""
        there = None
        if told.device.type == "cuda":
            told, norm = told.to("cpu", non_blocking=True), norm.to("cpu", non_blocking=True)  # to pinned memory
            there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            there.record()
        self._entries.append(Entry(clips, weight, lr, told, norm, there))

    def read(self, *, all: bool = False) -> Iterator[Entry]:
        """Every step but the newest, or that too; each once, in order."""
        while len(self._entries) > (0 if all else 1):
            entry = self._entries.popleft()
            if entry.there is not None:
                entry.there.synchronize()
            yield entry
