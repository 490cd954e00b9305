"""Define how much audio a micro-batch may have: found when a trial begins, saved with it, reduced if memory runs out.

Where a step is cut decides which micro-batch a clip is in, and so its dropout. A trial that goes on therefore keeps the budget
that it stopped with, as long as it runs in the like of the place for which that was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ser_hpc.data.sampler import BatchSpec
from ser_hpc.models.frontend import Frontend

_AS_MUCH = 0.98  # free memory is never twice the same
# Of what a checkpoint holds, by what an earlier version called it.
_NEW_NAMES = {
    "again": "activation_checkpointing",
    "place": "hardware",
    "lowered": "reduced",
    "words": "description",
    "room": "free_bytes",
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a budget depends on: a description, and bytes of memory that a rank may use (0 on a CPU)."""

    description: str
    free_bytes: float

    def is_like(self, other: Hardware) -> bool:
        return self.description == other.description and self.free_bytes >= _AS_MUCH * other.free_bytes


@dataclass(frozen=True, slots=True)
class Budget:
    """`samples` of a micro-batch; `reduced`: memory has run out with more."""

    samples: int
    activation_checkpointing: bool
    hardware: Hardware
    reduced: bool = False

    def batch_spec(self, ranks: int, accumulation: int | None, front: Frontend) -> BatchSpec:
        """Cut steps by `accumulation`, if it is given and memory sufficed for it."""
        return BatchSpec(ranks, self.samples, None if self.reduced else accumulation, front.padded, front.group)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Budget:
        """Read what a checkpoint holds, be it of an earlier version."""
        saved = _renamed(saved)
        return cls(**{**saved, "hardware": Hardware(**_renamed(saved["hardware"]))})


def _renamed(saved: dict[str, Any]) -> dict[str, Any]:
    return {_NEW_NAMES.get(name, name): value for name, value in saved.items()}
