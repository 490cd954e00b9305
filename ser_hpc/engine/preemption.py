"""Being asked to stop: a signal only sets a flag; the loop looks at it between steps, where all ranks agree and save together.

Nothing else is safe inside a handler: a collective there (every ZeRO save is one) deadlocks the other ranks. The job's end time
is a second line, for clusters that send no signal, or not to us.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Stopped(Exception):  # noqa: N818  (not an error: the trial goes on later)
    """The trial was asked to stop; its state is saved, and the same command goes on from there."""


class Superseded(Exception):  # noqa: N818  (not an error: somebody else does the work)
    """A newer attempt of this trial has begun: this one must end, and may write nothing more."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What all ranks have agreed to do after a step. `stop`: why, or None."""

    stop: str | None
    superseded: bool
    save: bool
    out_of_memory: bool


class StopFlag:
    """Context manager: within it, the stop signals set `reason` in this process and do nothing else.

    `stop_time`: when the job will soon end, in seconds since the epoch: from then on there is a reason, too.
    """

    def __init__(self, stop_time: float | None = None) -> None:
        self._stop_time = stop_time
        self._signal: signal.Signals | None = None
        self._process = os.getpid()
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._set) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned

    def _set(self, number: int, _: FrameType | None) -> None:
        if os.getpid() == self._process:  # a forked worker inherits the handler, not the duty
            self._signal = signal.Signals(number)

    def reason(self, save_s: float = 0.0) -> str | None:
        """Why to stop now, if at all. `save_s`: how long the last save took; it must fit in before the end, with room."""
        if self._signal is not None:
            return self._signal.name
        if self._stop_time is not None and time.time() > self._stop_time - 3 * save_s:
            return "the job's end time"
        return None


def stop_time(env: Mapping[str, str]) -> float | None:
    """When to stop although nobody asked, as the batch script says; None where there is none."""
    told = env.get("SER_HPC_STOP_TIME", "")
    return float(told) if told.isdigit() else None
