"""Windows of micro-batches made ahead of the model, in order: by one thread, or by processes.

Not torch's DataLoader: a thread and processes are one code, workers need no torch (each is up in a moment and holds tens of
MB), what a worker raises arrives as it was raised, and a dead one is told at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ser_hpc.cores import of_rank
from ser_hpc.data.sounds import SoundMaker, Sounds, Wanted
from ser_hpc.processes import Processes, WorkerKilledError

_MOST = 8  # 6 to 8 cores augment as fast as a GPU of today trains on them
_THREAD_AHEAD, _AHEAD = 4, 2  # windows, of the thread and of each process

_maker: SoundMaker | None = None  # in a worker process


def default_workers(augments: bool, ranks_here: int) -> int:
    """Decoding alone outruns training in one thread; with augmentation, a process for each core that this rank can spare."""
    if not augments:
        return 0
    return max(1, min(_MOST, of_rank(os.environ, ranks_here).cores - 1))


class Ahead:
    """`maker` at work in `workers` processes; with 0, a thread reads and decodes, and the caller's thread does the rest.

    (Augmentation seeds global random states, which no other thread of a process should see.)
    """

    def __init__(self, maker: SoundMaker, workers: int) -> None:
        self._maker, self.workers = maker, workers
        self._depth = _AHEAD * workers or _THREAD_AHEAD
        self._processes = Processes(workers, _begin, maker) if workers else None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")

    @property
    def pids(self) -> list[int]:
        """Of the processes that have begun."""
        return self._processes.pids if self._processes else []

    def __call__(self, windows: Iterable[Sequence[Wanted]]) -> Iterator[list[Sounds]]:
        """Raises what the maker raises; RuntimeError if a worker was killed."""
        waiting: deque[tuple[Sequence[Wanted], Future[Any]]] = deque()
        try:
            for window in windows:
                waiting.append((window, self._begun(window)))
                if len(waiting) > self._depth:
                    yield self._done(*waiting.popleft())
            while waiting:
                yield self._done(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _begun(self, window: Sequence[Wanted]) -> Future[Any]:
        return self._processes.submit(_make, window) if self._processes else self._reader.submit(self._maker.read, window)

    def _done(self, window: Sequence[Wanted], future: Future[Any]) -> list[Sounds]:
        try:
            result = future.result()
        except WorkerKilledError as error:
            raise RuntimeError(f"a data worker was killed (out of memory? fewer data.workers need less): {error}") from None
        made: list[Sounds] = result if self._processes else self._maker.finish(window, result)
        return made

    def close(self) -> None:
        if self._processes:
            self._processes.close()
        self._reader.shutdown(cancel_futures=True)


def _begin(maker: SoundMaker) -> None:
    global _maker
    _maker = maker


def _make(window: Sequence[Wanted]) -> list[Sounds]:
    assert _maker is not None
    return _maker.make(window)
