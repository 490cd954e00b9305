"""Which side is the wall: what reading, decoding and augmenting can deliver, against what the model takes.

Measured while a trial starts (half a second of batches that are thrown away) and over its first steps, the time that they
waited for data not counted; seconds of audio a second, of this rank. Training reads none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ser_hpc.clock import awake_s
from ser_hpc.data.batches import Batch, Source
from ser_hpc.data.order import MicroBatch

_PROBE_S = 0.5
_WARM_UP, _STEPS = 3, 10  # steps that are not counted, and that are


class Pace:
    """`data` and `model` are None until they are known."""

    def __init__(self) -> None:
        self.data: float | None = None
        self.model: float | None = None
        self._steps, self._seconds, self._audio = 0, 0.0, 0.0
        self._told = False

    def probe(self, source: Source, micros: Sequence[MicroBatch]) -> None:
        """What the data side delivers when all ranks ask at once, as they will."""
        self.data = source.delivers(micros, _PROBE_S)

    def steps(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """`steps` as they are; from when one is there until the next is asked for is the model's time."""
        for batches in steps:
            began = awake_s()
            yield batches
            self._steps += 1
            if self._steps > _WARM_UP and self.model is None:
                self._seconds += awake_s() - began
                self._audio += sum(batch.seconds for batch in batches)
                if self._steps == _WARM_UP + _STEPS:
                    self.model = self._audio / self._seconds

    def news(self, ranks: int) -> str | None:
        """A sentence, once, when both are known."""
        if self.data is None or self.model is None or self._told:
            return None
        self._told = True
        wall = "the model" if self.model < self.data else "the data (more data.workers, or more cores a rank)"
        each = " on each rank" if ranks > 1 else ""
        return f"data {self.data:,.0f} audio-s/s, model {self.model:,.0f} audio-s/s{each}: {wall} is the wall"
