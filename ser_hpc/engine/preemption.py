"""Being asked to stop: a signal only sets a flag; the loop looks at it between steps, where all ranks agree and save together.

Nothing else is safe inside a handler: a collective there (every ZeRO save is one) deadlocks the other ranks.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Stopped(Exception):  # noqa: N818  (not an error: the trial goes on later)
    """The trial was asked to stop; its state is saved, and the same command goes on from there."""


class StopFlag:
    """Context manager: within it, the stop signals set `raised` in this process and do nothing else."""

    def __init__(self) -> None:
        self.raised: signal.Signals | None = None
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
            self.raised = signal.Signals(number)
