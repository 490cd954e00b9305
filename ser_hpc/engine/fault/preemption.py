"""Notice that a trial is asked to stop (preemption, time limit, Ctrl-C): a signal only sets a flag.

`supervisor.Supervisor.obey` acts on it between steps, where all ranks agree: it saves and raises Stopped; `ser_hpc.train` ends
the attempt, and launchers/slurm/requeue_script.py has the job started again.

Nothing else is safe inside a handler: a collective there (every ZeRO save is one) deadlocks the other ranks. The job's end time
is a second line, for clusters that send no signal, or not to us.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Self

from ser_hpc.core.awake_clock import stopped_s

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Stopped(Exception):  # noqa: N818  (not an error: the trial goes on later)
    """The trial was asked to stop; its state is saved, and the same command goes on from there."""


class Superseded(Exception):  # noqa: N818  (not an error: somebody else does the work)
    """A newer attempt of this trial has begun: this one must end, and may write nothing more."""


class StopFlag:
    """Context manager: within it, the stop signals set `reason` in this process, and nothing else happens.

    A cluster sends them to every process of a job. A thread waits for them here, and they are blocked everywhere else, which
    what is started meanwhile inherits: a compiler, killed by a warning, would fail the trial.
    `stop_time`: when the job will soon end, in seconds since the epoch: from then on there is a reason, too.
    """

    def __init__(self, stop_time: float | None = None) -> None:
        self._stop_time = stop_time
        self._stopped_before: float | None = None
        self._signal: signal.Signals | None = None
        self._leave: Callable[[str], None] | None = None
        self._process = os.getpid()
        self._handlers: dict[signal.Signals, object] = {}
        self._mask: set[int] = set()
        self._over = False

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._set) for number in STOP_SIGNALS}  # for threads from before
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        signal.pthread_kill(self._listener.ident or 0, STOP_SIGNALS[0])
        self._listener.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _listen(self) -> None:
        while True:
            number = signal.sigwait(STOP_SIGNALS)
            if self._over:
                return
            self._set(number, None)

    def _set(self, number: int, _: FrameType | None) -> None:
        if os.getpid() == self._process:  # a forked worker inherits the handler, not the duty
            self._signal = signal.Signals(number)
            if self._leave is not None:
                self._leave(self._signal.name)

    @contextmanager
    def at_once(self, leave: Callable[[str], None]) -> Iterator[None]:
        """Have being asked to stop call `leave`, from whatever thread: nothing can be saved yet, and much is waited for.

        `leave` is given the reason, and ends the process: what waits in a library can be ended in no other way.
        """
        self._leave = leave
        try:
            if self._signal is not None:
                leave(self._signal.name)
            yield
        finally:
            self._leave = None

    def reason(self, save_s: float = 0.0) -> str | None:
        """Return why to stop now, if at all. `save_s`: how long the last save took, which must fit in before the end."""
        if self._signal is not None:
            return self._signal.name
        if self._stop_time is not None and time.time() > self._stop_time + self._suspended_s() - 3 * save_s:
            return "the job's end time"
        return None

    def _suspended_s(self) -> float:
        """Return how long the job was suspended, which Slurm adds to its end. From the first call on: before it, libraries
        are loaded, which can look the same (see core/awake_clock.py)."""
        now = stopped_s()
        if self._stopped_before is None:
            self._stopped_before = now
        return now - self._stopped_before


def stop_time(env: Mapping[str, str]) -> float | None:
    """Return when to stop although nobody asked, as the batch script says; None where there is none."""
    written = env.get("SER_HPC_STOP_TIME", "")
    return float(written) if written.isdigit() else None
