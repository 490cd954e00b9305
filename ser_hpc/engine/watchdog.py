"""A trial that hangs (a collective that waits for a lost rank, a file system that does not answer) ends itself, loudly.

Every rank watches its own progress: without a beat for `limit_s` it prints the stack of each of its threads and leaves with an
exit code that asks for another attempt. The first line is a thread of ours, which can also write down what happened; the second
is faulthandler's timer, which needs neither the interpreter's lock nor a living thread.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

_LAST_WORDS_S = 5.0  # so that every rank's stacks are printed before the first to leave ends the others
_SECOND_LINE_S = 60.0


class Watchdog:
    """Context manager. `on_hang` is called once, in the watching thread, before the process leaves with `exit_code`."""

    def __init__(self, limit_s: float, on_hang: Callable[[], None], exit_code: int) -> None:
        self._limit_s, self._on_hang, self._exit_code = limit_s, on_hang, exit_code
        self._beat = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Something was done."""
        self._beat = time.monotonic()
        faulthandler.dump_traceback_later(self._limit_s + _SECOND_LINE_S, exit=True)

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limit_s / 4)):
            if time.monotonic() - self._beat > self._limit_s:
                print(f"nothing happened for {self._limit_s:.0f} s: this rank hangs here:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(all_threads=True)
                self._on_hang()
                time.sleep(_LAST_WORDS_S)
                os._exit(self._exit_code)
