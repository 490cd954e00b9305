"""Measure time in which this process was awake: while a suspended job's processes are stopped, every other clock goes on.

No clock of the system leaves that time out. So a thread looks at the clock each second: where seconds lie between two looks,
nobody could look. The first to ask after a stop finds that out, be it the thread or not, so no answer counts the stop. (A
library that keeps the interpreter to itself for that long looks the same, and is not counted either.)
"""

from __future__ import annotations

import threading
import time

_TICK_S = 0.5
_STOPPED_S = 2.5  # between two looks: a busy machine keeps a thread from looking for less


class _Clock:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._stopped = 0.0
        threading.Thread(target=self._tick, name="clock", daemon=True).start()

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK_S)
            self.read()

    def read(self) -> tuple[float, float]:
        """Return seconds awake, since some moment, and seconds stopped."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked > _STOPPED_S:
                self._stopped += now - self._looked
            self._looked = now
            return now - self._stopped, self._stopped


_clock: _Clock | None = None
_making = threading.Lock()


def awake_s() -> float:
    """Read the clock: seconds since some moment, less those in which this process was stopped. For every duration, and every
    wait that is given up, in what runs as a job."""
    return _look()[0]


def stopped_s() -> float:
    """Tell how many seconds this process was stopped since somebody here first asked for the time."""
    return _look()[1]


def _look() -> tuple[float, float]:
    global _clock
    with _making:
        if _clock is None:
            _clock = _Clock()
    return _clock.read()
