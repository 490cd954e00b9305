"""Run packing's tasks on several processes, which end at Ctrl-C and with their parent; a killed one is a UserError."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, as_completed
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from ser_hpc.core.errors import UserError
from ser_hpc.core.process_pool import ProcessPool, WorkerKilledError

Result = TypeVar("Result")
_wanted: Connection | None = None  # in a worker process: at its end once the work is wanted no more


class StoppedError(Exception):
    """Raised inside a task whose result nobody wants any more."""


class TaskPool:
    """A pool of `count` processes; with one, tasks run in this process. A context manager: leaving it ends the processes."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise UserError(f"{count} workers: give at least 1")
        self._cancelled = False
        wanted, self._wanted = Pipe(duplex=False)  # not an Event, whose lock a worker could take with it when it is killed
        self._pool = ProcessPool(count, _begin, wanted) if count > 1 else None

    def run(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Yield `function(*task)` of each task, as they complete. Raises what a task raises; UserError if one is killed."""
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
            except WorkerKilledError:
                raise UserError(
                    "a worker process was killed (out of memory?); what is finished is kept: "
                    "run the same command again, with fewer --workers"
                ) from None

    def cancel(self) -> None:
        """Begin no further task; those that run finish, and `run` still yields their results."""
        self._cancelled = True

    def __enter__(self) -> TaskPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            if kind is not None:
                self._wanted.close()
            self._pool.close()


def check_stopped() -> None:
    """Raise StoppedError in a worker that is to end; tasks call this every few milliseconds of work."""
    if _wanted is not None and _wanted.poll():
        raise StoppedError


def _begin(wanted: Connection) -> None:
    global _wanted
    _wanted = wanted
