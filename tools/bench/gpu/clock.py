"""The call's clock: it began when the process did, before anything was imported."""

from __future__ import annotations

import os
import time
from pathlib import Path

_BELIEVED_S = 120.0


class Clock:
    """`limit_s` for everything, counted from `began` (time.monotonic)."""

    def __init__(self, limit_s: float, began: float | None = None) -> None:
        self.limit_s = limit_s
        self.began = time.monotonic() - age() if began is None else began

    def passed(self) -> float:
        return time.monotonic() - self.began

    def left(self) -> float:
        return self.limit_s - self.passed()

    def share(self, limit_s: float, least_s: float) -> float | None:
        """Seconds that a part may take of what is left; None if that is less than it needs to tell anything."""
        seconds = min(limit_s, self.left())
        return seconds if seconds >= least_s else None


def age() -> float:
    """Seconds since this process was started, by the kernel; 0 where it says nothing that can be believed, as in a container
    whose clock is not the kernel's."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
    return seconds if 0 <= seconds < _BELIEVED_S else 0.0
