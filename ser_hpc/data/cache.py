"""Cache decoded clips in memory, for `batches.BatchSource`: what fits is read and decoded once, however many epochs there are.

An hour of speech is 115 MB as int16. Where not all of it fits, what came first stays: an epoch asks for every clip, so dropping
one for another would save nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ser_hpc.shards.read import ClipReader, CorruptClipError, Extent, Payload
from ser_hpc.shards.storage import Location

_PART = 4  # of the memory that a rank may use, one in so many


class CachingClipReader(ClipReader):
    """A ClipReader that keeps up to `keep_bytes` of decoded clips; damaged ones are read anew each time.

    For one thread, but for `fetch` and `holds`. What is kept stays here: in another process it is a plain ClipReader.
    """

    def __init__(
        self, originals: Sequence[Location], copies: Sequence[Location] = (), *, coalesce: bool = False, keep_bytes: int
    ) -> None:
        super().__init__(originals, copies, coalesce=coalesce)
        self._cached: dict[Extent, np.ndarray] = {}
        self._free_bytes = keep_bytes

    def read(self, extents: Sequence[Extent], payloads: Sequence[Payload] | None = None) -> list[np.ndarray | CorruptClipError]:
        """Read as ClipReader.read does; the arrays may be shared, and are not to be written to."""
        rows = [i for i, extent in enumerate(extents) if extent not in self._cached]
        missing = [extents[i] for i in rows]
        found_now = super().read(missing, None if payloads is None else [payloads[i] for i in rows])
        read = dict(zip(missing, found_now, strict=True))
        found = [read[extent] if extent in read else self._cached[extent] for extent in extents]
        for extent, clip in read.items():
            if isinstance(clip, np.ndarray) and clip.nbytes <= self._free_bytes:
                clip.flags.writeable = False
                self._cached[extent] = clip
                self._free_bytes -= clip.nbytes
        return found

    def holds(self, extent: Extent) -> bool:
        return extent in self._cached

    def close(self) -> None:
        super().close()
        self._cached.clear()


def cache_bytes(cache_gb: float | None, ranks_here: int) -> int:
    """Turn the setting `data.cache_gb` into bytes; by default what a rank of `ranks_here` on this node may keep."""
    if cache_gb is not None:
        return round(cache_gb * 1e9)
    trials = int(os.environ.get("SER_HPC_TRIALS_HERE", 1))  # that share this machine, or this job
    return available_memory_bytes(os.environ) // (ranks_here * trials * _PART)


def available_memory_bytes(env: Mapping[str, str], root: Path = Path("/")) -> int:
    """Find the least of what is available now, what this process's control groups allow, and what its Slurm job asked for.

    `root`: of the file system that holds /proc and /sys.
    """
    requested = env.get("SLURM_MEM_PER_NODE", "")
    job = [int(requested) << 20] if requested.isdigit() and int(requested) else []
    available = re.search(r"MemAvailable:\s*(\d+) kB", (root / "proc/meminfo").read_text(encoding="ascii"))
    assert available, "every Linux since 3.14 says so"
    return min([int(available[1]) << 10, *job, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Yield the limits of this process's control groups and all above them, version 1 and 2."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
            group = Path(path.strip("/"))
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # of another mount, or without a limit ("max")
                    yield int((root / "sys/fs/cgroup" / top / folder / name).read_text(encoding="ascii"))
