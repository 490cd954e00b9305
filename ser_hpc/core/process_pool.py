"""Run work in worker processes, each at the end of a pipe of its own, so that none of them can die unnoticed.

The pool of concurrent.futures has one pipe for all results. A worker killed in the middle of one (decoded sound is megabytes,
a pipe holds 64 KiB) leaves half a message, and the pool waits for the other half for ever. Here it ends in end-of-file.

Workers are deaf to the signals that ask a job to stop: this process alone decides, and they end with it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from ser_hpc.core.cores import THREADS

_starting = threading.Lock()
IGNORED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class WorkerKilledError(Exception):
    """A worker process ended in the middle of its work, which is lost."""


class ProcessPool:
    """Up to `count` of them, each started when there is work for it; `begin(*arguments)` is the first that each one calls.

    Spawned, not forked: the caller may have threads (NCCL's, gloo's, Arrow's), whose locks a fork would inherit.
    """

    def __init__(self, count: int, begin: Callable[..., None], *arguments: Any) -> None:
        self._begin = begin, arguments
        self._threads = ThreadPoolExecutor(count)  # each has a process of its own, and waits for it
        self._mine = threading.local()
        self._workers: list[tuple[SpawnProcess, Connection]] = []
        atexit.register(self.close)  # before multiprocessing's own, which waits for processes that nobody has told to end

    @property
    def pids(self) -> list[int]:
        return [process.pid for process, _ in self._workers if process.pid is not None]

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `function(*arguments)` in a worker. The future raises what it raises; WorkerKilledError if the worker dies."""
        return self._threads.submit(self._remote, function, arguments)

    def close(self) -> None:
        """Wait for what runs, and cancel what waits."""
        atexit.unregister(self.close)
        self._threads.shutdown(cancel_futures=True)
        for process, pipe in self._workers:
            pipe.close()
            process.join()

    def _remote(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if not hasattr(self._mine, "worker"):
            self._mine.worker = self._start()
        process, pipe = self._mine.worker
        try:
            pipe.send((function, arguments))
            done, result = pipe.recv()
        except (EOFError, OSError):
            process.join()
            raise WorkerKilledError(f"a worker process ended with code {process.exitcode}") from None
        if not done:
            raise result
        return result

    def _start(self) -> tuple[SpawnProcess, Connection]:
        """Start a worker, in a thread of the pool: it blocks signals for good, and what it starts inherits that."""
        resource_tracker.ensure_running()  # multiprocessing's own; it unblocks some of them
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        context = multiprocessing.get_context("spawn")
        pipe, worker_end = context.Pipe()
        process = context.Process(target=_serve, args=(worker_end, *self._begin))
        with _one_thread():
            process.start()
        worker_end.close()  # the worker has the only one: its death is the end of the file
        self._workers.append((process, pipe))
        return process, pipe


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give what is started within it one core: there are as many processes as cores, and numpy's library would give each
    of them a thread for every core of the machine, which some sites do not even permit."""
    with _starting:
        before = os.environ.get(THREADS)
        os.environ[THREADS] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[THREADS]
            else:
                os.environ[THREADS] = before


def _serve(pipe: Connection, begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)
    with suppress(EOFError, ConnectionError):  # the other end is closed
        while True:
            function, inputs = pipe.recv()
            try:
                reply = True, function(*inputs)
            except Exception as error:
                error.add_note("In a worker process:\n" + traceback.format_exc())
                reply = False, error
            pipe.send(reply)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
