"""Place numbers on an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis: `low` lies at pixel `start`, `high` at `end`; numbers beyond are put on its ends."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return a number's place in pixels, to a tenth."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers on the axis, at most so many."""
        rough = (self.high - self.low) / max(1, most - 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def round_up(values: Iterable[float]) -> float:
    """Return a round number that is not below any of the finite values; 1 where there is none above 0."""
    high = max((value for value in values if math.isfinite(value)), default=0.0)
    if high <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(high))
    return next(step * power for step in _STEPS if step * power >= high * (1 - 1e-9))
