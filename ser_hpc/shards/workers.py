"""Tasks on several processes that end when they should: at Ctrl-C, with their parent, or with a word when one is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Any, TypeVar

from ser_hpc.errors import UserError

Result = TypeVar("Result")
_stop: Event | None = None  # set in a worker process: whether the work is wanted no more


class StoppedError(Exception):
    """Raised inside a task whose result nobody wants any more."""


class Workers:
    """A pool of `count` processes; with one, tasks run in this process. Leave it (a context manager) and nothing runs on.

    Spawned, not forked: the caller may have threads (a progress bar, Arrow's), whose locks a fork would inherit.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise UserError(f"{count} workers: give at least 1")
        self._cancelled = False
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            context = multiprocessing.get_context("spawn")
            self._stop = context.Event()
            self._pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(self._stop,))

    def run(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """`function(*task)` of each task, as they complete. Raises what a task raises, UserError if a worker is killed."""
        if self._pool is None:
            for task in tasks:
                if self._cancelled:
                    return
                yield function(*task)
            return
        futures: list[Future[Result]] = [self._pool.submit(function, *task) for task in tasks]
        for future in as_completed(futures):
            if self._cancelled:
                for waiting in futures:
                    waiting.cancel()
            if future.cancelled():
                continue
            try:
                yield future.result()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed (out of memory?); what is finished is kept: "
                    "run the same command again, with fewer --workers"
                ) from None

    def cancel(self) -> None:
        """Begin no further task; those that run finish, and `run` still yields their results."""
        self._cancelled = True

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            if kind is not None:
                self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)


def check_stopped() -> None:
    """Called by tasks every few milliseconds of work. Raises StoppedError in a worker that is to end."""
    if _stop is not None and _stop.is_set():
        raise StoppedError


def _start(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
