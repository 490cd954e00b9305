"""Windows of micro-batches made ahead of the model, in order: by one thread, or by processes.

Executors of the standard library rather than torch's DataLoader: a thread and processes are one code, workers need no torch
(each is up in a moment and holds tens of MB), what a worker raises arrives as it was raised, and a dead one is told at once.

Workers are deaf to the signals that ask a job to stop: the training process alone decides, and they end with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from typing import Any

from ser_hpc.data.sounds import SoundMaker, Sounds, Wanted

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
_MOST = 8  # 6 to 8 cores augment as fast as a GPU of today trains on them
_THREAD_AHEAD, _AHEAD = 4, 2  # windows, of the thread and of each process

_maker: SoundMaker | None = None  # in a worker process


def default_workers(augments: bool, ranks_here: int) -> int:
    """Decoding alone outruns training in one thread; with augmentation, a process for each core that this rank can spare."""
    if not augments:
        return 0
    cores = len(os.sched_getaffinity(0))
    told = os.environ.get("SLURM_CPUS_PER_TASK", "")
    mine = min(cores, int(told)) if told.isdigit() else cores // ranks_here
    return max(1, min(_MOST, mine - 1))


class Ahead:
    """`maker` at work in `workers` processes; with 0, a thread reads and decodes, and the caller's thread does the rest.

    (Augmentation seeds global random states, which no other thread of a process should see.)
    """

    def __init__(self, maker: SoundMaker, workers: int) -> None:
        self._maker, self.workers = maker, workers
        self._depth = _AHEAD * workers or _THREAD_AHEAD
        self._pool: ProcessPoolExecutor | ThreadPoolExecutor
        if workers:
            context = multiprocessing.get_context("spawn")  # a fork would copy the locks of NCCL's and gloo's threads
            self._pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(maker,))
        else:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="reader")

    def __call__(self, windows: Iterable[Sequence[Wanted]]) -> Iterator[list[Sounds]]:
        """Raises what the maker raises; RuntimeError if a worker was killed."""
        waiting: deque[tuple[Sequence[Wanted], Future[Any]]] = deque()
        work = _make if self.workers else self._maker.read
        try:
            for window in windows:
                with _born_deaf() if self.workers else nullcontext():  # a task that finds no idle process starts one
                    waiting.append((window, self._pool.submit(work, window)))
                if len(waiting) > self._depth:
                    yield self._done(*waiting.popleft())
            while waiting:
                yield self._done(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _done(self, window: Sequence[Wanted], future: Future[Any]) -> list[Sounds]:
        try:
            result = future.result()
        except BrokenProcessPool:
            raise RuntimeError("a data worker was killed (out of memory? fewer data.workers need less)") from None
        made: list[Sounds] = result if self.workers else self._maker.finish(window, result)
        return made

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _born_deaf() -> Iterator[None]:
    """Processes that are started within inherit that the signals are blocked; to this one they come a moment later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        resource_tracker.ensure_running()  # multiprocessing's; it unblocks some of them
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(maker: SoundMaker) -> None:
    global _maker
    _maker = maker
    for watch in (_end_with_parent, _end_at_its_word):
        threading.Thread(target=watch, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end_at_its_word() -> None:
    """Of the signals that are blocked, only the executor's own TERM counts: it ends the others when one worker is lost."""
    while True:
        told = signal.sigwaitinfo(IGNORED)
        if told.si_signo == signal.SIGTERM and told.si_pid == os.getppid():
            os._exit(1)


def _make(window: Sequence[Wanted]) -> list[Sounds]:
    assert _maker is not None
    return _maker.make(window)
