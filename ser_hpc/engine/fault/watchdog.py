"""End a trial that hangs (a collective that waits for a lost rank, a file system that does not answer), from within.

Every rank watches its own progress: without a beat for `limit_s` it prints the stack of each of its threads and leaves with an
exit code that asks for another attempt. The first line is a thread of ours, which can also write down what happened. Where a
library keeps the interpreter's lock to itself, no thread of ours runs: then the second line, a process, ends this one.

Both count the ticks that they have waited, not the clock's seconds: while a job is suspended, it is stopped and they are too.
A timer within this process (faulthandler's, the kernel's) would go on, and fire as the process wakes up, before anything else.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

_LAST_WORDS_S = 5.0  # so that every rank's stacks are printed before the first to leave ends the others
_SECOND_LINE_S = 60.0
_TICK_S = 1.0
_TELL = signal.SIGQUIT  # prints the stacks, be it sent by a person


class Watchdog:
    """Context manager. `on_hang` is called once, in the watching thread, before the process leaves with `exit_code`.

    `second_s`: how much later than `limit_s` the second line acts, if it has not heard of the first one.
    """

    def __init__(
        self, limit_s: float, on_hang: Callable[[], None], exit_code: int, *, second_s: float = _SECOND_LINE_S
    ) -> None:
        self._limit_s, self._on_hang, self._exit_code = limit_s, on_hang, exit_code
        script = Path(__file__).with_name("second_line.py")
        self._second_line = [sys.executable, "-I", "-S", str(script), str(limit_s + second_s)]
        self._beats = 0
        self._over = threading.Event()

    def __enter__(self) -> Self:
        faulthandler.register(_TELL, all_threads=True)
        self._other = subprocess.Popen(self._second_line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._other.kill()
        self._other.communicate()

    def beat(self) -> None:
        """Report progress: the count of silent seconds starts anew."""
        self._beats += 1

    def _watch(self) -> None:
        seen, silent_s, tick = self._beats, 0.0, min(_TICK_S, self._limit_s / 4)
        while not self._over.wait(tick):
            self._send_heartbeat()
            silent_s = silent_s + tick if seen == self._beats else 0.0
            seen = self._beats
            if silent_s > self._limit_s:
                print(f"nothing happened for {self._limit_s:.0f} s: this rank hangs here:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(all_threads=True)
                self._on_hang()
                time.sleep(_LAST_WORDS_S)
                os._exit(self._exit_code)

    def _send_heartbeat(self) -> None:
        """Write to the second line that the interpreter runs."""
        assert self._other.stdin is not None
        with suppress(OSError, ValueError):  # somebody has killed it: the first line stays
            os.write(self._other.stdin.fileno(), b".")
