"""Define how much audio a micro-batch may have: found when a trial begins, saved with it, lowered if memory runs out.

Where a step is cut decides which micro-batch a clip is in, and so its dropout. A trial that goes on therefore keeps the budget
that it stopped with, as long as it runs in the like of the place for which that was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ser_hpc.data.sampler import BatchSpec
from ser_hpc.models.frontend import Frontend

_AS_MUCH = 0.98  # free memory is never twice the same


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a budget depends on: `words`, a description; `room`, bytes of memory that a rank may use (0 on a CPU)."""

    words: str
    room: float

    def is_like(self, other: Hardware) -> bool:
        return self.words == other.words and self.room >= _AS_MUCH * other.room


@dataclass(frozen=True, slots=True)
class Budget:
    """`samples` of a micro-batch; `again`: with activation checkpointing; `lowered`: memory has run out with more."""

    samples: int
    again: bool
    place: Hardware
    lowered: bool = False

    def batch_spec(self, ranks: int, accumulation: int | None, front: Frontend) -> BatchSpec:
        """Cut steps by `accumulation`, if it is given and memory sufficed for it."""
        return BatchSpec(ranks, self.samples, None if self.lowered else accumulation, front.padded, front.group)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Budget:
        return cls(**{**saved, "place": Hardware(**saved["place"])})
