"""Read clips window by window ahead of their decoding, where an order by shards (`sampler.ShardOrder`) numbers the windows.

    micro-batches     looked at ahead, until a window after the next begins: then all that this rank needs of the next is known
    -> reads          one for the clips of a block, whatever micro-batches they are for
    -> payloads       packed, kept until the last micro-batch that has the clip

Reads are asked for in threads, while less than the limit waits to be decoded: as a window is used up, the next one takes its
place, so that training waits for a window at its start alone.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ser_hpc.data.sampler import MicroBatch
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ClipReader, Extent, Payload, clip_extents, find_spans

_AT_ONCE = 8  # reads: of large ones some are as fast as many

Clip = tuple[int, int]  # its window and its position


class ReadAhead:
    """Reads through `reader` until `limit_bytes` wait, and on as they are taken. The reads under way come on top of that."""

    def __init__(self, reader: ClipReader, index: ShardIndex, limit_bytes: int) -> None:
        self._reader, self._index, self._limit_bytes = reader, index, limit_bytes
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="read-ahead")

    def __call__(self, micros: Iterable[MicroBatch]) -> Iterator[tuple[MicroBatch, list[Payload]]]:
        """Yield each micro-batch with its clips' payloads: of clips that the reader holds, they are empty.

        Raises UserError if a store does not answer.
        """
        reads = _Reads(self._reader, self._index, self._limit_bytes, self._threads)
        ahead: deque[tuple[MicroBatch, list[Clip]]] = deque()
        known = 0  # windows before it are known
        try:
            for micro in micros:
                loaded = micro.clips.loaded
                assert loaded.windows is not None, "an order by shards numbers windows"
                clips = list(zip(loaded.windows.tolist(), loaded.positions.tolist(), strict=True))
                ahead.append((micro, clips))
                reads.expect(clips)
                known = max(known, min(clips)[0])
                reads.plan(known)  # one before `known` now and then too: a step in two windows mixes them
                while max(ahead[0][1])[0] + 1 < known:
                    yield ahead[0][0], reads.take(ahead.popleft()[1])
            reads.plan(math.inf)
            while ahead:
                yield ahead[0][0], reads.take(ahead.popleft()[1])
        finally:
            reads.cancel()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


@dataclass(slots=True, eq=False)
class _Read:
    """The clips that come with one read; `future`: their payloads by clip, once asked for."""

    clips: dict[Clip, Extent]
    future: Future[dict[Clip, Payload]] | None = None


class _Reads:
    """The reads of one pass, from what its micro-batches need to their payloads. For one thread."""

    def __init__(self, reader: ClipReader, index: ShardIndex, limit_bytes: int, threads: ThreadPoolExecutor) -> None:
        self._reader, self._index, self._limit_bytes, self._threads = reader, index, limit_bytes, threads
        self._uses: Counter[Clip] = Counter()  # that are to come
        self._unplanned: dict[int, list[Clip]] = defaultdict(list)  # by window
        self._read_of: dict[Clip, _Read | None] = {}  # None: it needs none
        self._queue: deque[_Read] = deque()  # not asked for
        self._waiting_bytes = 0  # asked for, not taken

    def expect(self, clips: list[Clip]) -> None:
        """Note that a micro-batch needs clips."""
        for clip in clips:
            if not self._uses[clip]:
                self._unplanned[clip[0]].append(clip)
            self._uses[clip] += 1

    def plan(self, end: float) -> None:
        """Choose the reads of all windows before `end`, and ask for the first."""
        for window in sorted(window for window in self._unplanned if window < end):
            clips = self._unplanned.pop(window)
            extents = clip_extents(self._index, [position for _, position in clips])
            self._read_of.update(dict.fromkeys(clips))
            missing = [pair for pair in zip(clips, extents, strict=True) if not self._reader.holds(pair[1])]
            for members in find_spans([extent for _, extent in missing]):
                read = _Read(dict(missing[i] for i in members))
                self._read_of.update(dict.fromkeys(read.clips, read))
                self._queue.append(read)
        self._ask()

    def take(self, clips: list[Clip]) -> list[Payload]:
        """Return payloads, waiting for those that are not there yet; the last use of a clip drops its payload."""
        payloads = [self._take(clip) for clip in clips]
        self._ask()
        return payloads

    def cancel(self) -> None:
        """Ask for nothing more."""
        for read in self._read_of.values():
            if read is not None and read.future is not None:
                read.future.cancel()

    def _take(self, clip: Clip) -> Payload:
        read = self._read_of[clip]
        self._uses[clip] -= 1
        last = not self._uses[clip]
        if last:
            del self._uses[clip], self._read_of[clip]
        if read is None:
            return b""
        if read.future is None:
            self._queue.remove(read)
            self._start(read)
        assert read.future is not None
        found = read.future.result()
        payload = found[clip]
        if last:
            del found[clip]
            self._waiting_bytes -= read.clips[clip].size
        return payload

    def _ask(self) -> None:
        while self._queue and self._waiting_bytes < self._limit_bytes:
            self._start(self._queue.popleft())

    def _start(self, read: _Read) -> None:
        self._waiting_bytes += sum(extent.size for extent in read.clips.values())
        read.future = self._threads.submit(self._fetch, read)

    def _fetch(self, read: _Read) -> dict[Clip, Payload]:
        return dict(zip(read.clips, self._reader.fetch([*read.clips.values()]), strict=True))
