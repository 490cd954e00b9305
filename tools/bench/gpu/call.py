"""Parts in processes of their own: side by side or one alone, each ended at its limit, whatever it wrote kept as it comes.

They are forked from one process that has imported the libraries and nothing more, so a part starts at once and finds a GPU that
nobody else holds. Where that fork cannot use CUDA after all, they are started from nothing instead.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu.clock import Clock
from gpu.kept import Kept

BAD_FORK = 77  # the exit code of a part that was forked from a process that CUDA knows
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """`module` is run as `python -m` would; {out} and {seconds} in `arguments` become its file and its share of the time.

    It is left out, by name, where a package that it `needs` is missing or less than `least_s` are left, and ended after
    `limit_s`.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    limit_s: float
    least_s: float = 15.0
    needs: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


class Running:
    """One part's process."""

    def __init__(self, context: Any, part: Part, out: Path, log: Path, limit_s: float, began: float) -> None:
        self.part, self.out, self.limit_s, self.began = part, out, limit_s, began
        words = {"{out}": str(out), "{seconds}": f"{limit_s - 2:.0f}"}
        arguments = [words.get(word, word) for word in part.arguments]
        self._started = time.monotonic()
        self._process = context.Process(target=serve, args=(part.module, arguments, dict(part.env), str(log)), name=part.name)
        self._process.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def how(self) -> str | None:
        """How it ended; None while it runs. One that is over its limit is ended."""
        code = self._process.exitcode
        if code is None:
            if self.seconds < self.limit_s:
                return None
            self.kill()
            return f"ended after {self.limit_s:.0f} s"
        self.kill()  # what it may have left behind
        return "done" if code == 0 else f"failed with code {code}"

    @property
    def bad_fork(self) -> bool:
        return bool(self._process.exitcode == BAD_FORK)

    def kill(self) -> None:
        """It and its whole session: data loaders, ranks, compilers."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


class Call:
    """`scratch`: the parts' files, and `log`, what they print; `preload`: a module that their common parent imports."""

    def __init__(self, kept: Kept, clock: Clock, scratch: Path, log: Path, env: Mapping[str, str], preload: str) -> None:
        self._kept, self._clock, self._scratch, self._log = kept, clock, scratch, log
        self._running: list[Running] = []
        os.environ |= env
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preload])

    def start(self, part: Part) -> bool:
        """False where an earlier call has it, or where it is left out, for a reason that is kept."""
        missing = [package for package in part.needs if not found(package)]
        share = self._clock.share(part.limit_s, part.least_s)
        if self._kept.has(part.name):
            return False
        if missing:
            reason = f"left out: {', '.join(missing)} not installed"
        elif share is None:
            reason = "left out: no time left"
        else:
            now = round(self._clock.passed(), 1)
            self._kept.part(part.name, how="running", began=now)
            out = self._scratch / f"{part.name.replace(':', '-')}.json"
            self._running.append(Running(self._context, part, out, self._log, share, now))
            return True
        self._say(part.name, reason)
        return False

    def run(self, parts: Sequence[Part]) -> None:
        """Side by side, until the last of them has ended."""
        names = {part.name for part in parts if self.start(part)}
        while any(running.part.name in names for running in self._running):
            self._look()
            time.sleep(_LOOK_S)

    def end(self) -> None:
        """Whatever still runs."""
        for running in self._running:
            running.kill()
            self._kept.look(running.part.name, running.out, ended=True)
            self._say(running.part.name, "ended with the call", running.seconds)
        self._running = []

    def _look(self) -> None:
        for running in list(self._running):
            how = running.how()
            self._kept.look(running.part.name, running.out, ended=how is not None)
            if how is None:
                continue
            self._running.remove(running)
            if running.bad_fork and self._context.get_start_method() == "forkserver":
                self._context = multiprocessing.get_context("spawn")
                self.start(running.part)
            else:
                self._say(running.part.name, how, running.seconds)

    def _say(self, name: str, how: str, seconds: float = 0.0) -> None:
        self._kept.part(name, how=how, seconds=round(seconds, 1))
        print(f"{self._clock.passed():6.1f} s  {name}: {how}, {seconds:.1f} s", flush=True)


def found(package: str) -> bool:
    with suppress(ImportError, ValueError):
        return find_spec(package) is not None
    return False


def serve(module: str, arguments: list[str], env: dict[str, str], log: str) -> None:
    """In a part's process: a session of its own, which ends with the call; its words go to the log."""
    os.setsid()
    threading.Thread(target=_end_with_call, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(f"\n== python -m {module} {' '.join(arguments)}", flush=True)
    if "torch" in sys.modules and sys.modules["torch"].cuda._is_in_bad_fork():
        os._exit(BAD_FORK)
    os.environ |= env
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_call() -> None:
    call = multiprocessing.parent_process()
    assert call is not None
    call.join()
    os.killpg(0, signal.SIGKILL)
