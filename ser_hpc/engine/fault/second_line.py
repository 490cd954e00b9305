"""End the process that started this one, once the pipe from it has been silent for LIMIT_S seconds; `watchdog` starts it.

    python -I -S second_line.py LIMIT_S < pipe

A file of the standard library alone, and a small process: it lives beside every rank. What it counts are seconds that it has
waited through: while the job is suspended it is stopped as well, and where its parent alone is, that shows in /proc.
It ends with its parent.
"""

import os
import select
import signal
import sys
import time
from pathlib import Path

_TICK_S = 1.0
_LAST_WORDS_S = 5.0


def watch(parent: int, limit_s: float) -> None:
    """Kill `parent` once standard input has been silent for `limit_s`; return when there is nobody to watch any more."""
    silent_s = 0.0
    while silent_s <= limit_s:
        heard, _, _ = select.select([0], [], [], _TICK_S)
        if os.getppid() != parent or (heard and not os.read(0, 4096)):
            return
        silent_s = 0.0 if heard or _is_stopped(parent) else silent_s + _TICK_S
    print(f"the interpreter did not run for {limit_s:.0f} s: this rank is killed; it hangs here:", file=sys.stderr, flush=True)
    os.kill(parent, signal.SIGQUIT)  # it prints its stacks (see watchdog.py), without need of the interpreter
    time.sleep(_LAST_WORDS_S)
    if os.getppid() == parent:
        os.kill(parent, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


if __name__ == "__main__":
    watch(os.getppid(), float(sys.argv[1]))
