"""What many ranks ask of a store when an epoch is read by shards: planned, not read, over a simulated corpus.

python tools/bench/order_ranks.py [--clips 52000] [--out tools/bench/results/order_ranks.json]

Clips as long as natural speech (log-normal, median 3.7 s), in shards of 64 MB, windows of 1 GB. 32 clips a step and rank, 16 on
64 ranks. `bytes_per_useful_byte` is over all ranks: each needs clips of every block, and reads over small gaps.
"""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.table import Table

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.data.sampler import BLOCK_BYTES, BatchSpec, ShardOrder, epoch_steps, step_micro_batches
from ser_hpc.shards import RATE
from ser_hpc.shards.read import Extent, find_spans

SHARD_BYTES, WINDOW_BYTES = 64_000_000, 1_024_000_000
CASES = ((1, 32), (2, 64), (8, 256), (16, 512), (64, 1024))  # ranks, clips of a step
BYTES_PER_SAMPLE, BUDGET_S = 1.2, 320  # FLAC of speech takes 0.6 of 16-bit samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=52_000)
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    samples, extents, order = corpus(options.clips)
    table = Table("ranks", "clips a step", "requests per clip", "bytes per useful byte")
    found = []
    for ranks, global_batch in CASES:
        requests, received = ask(samples, extents, order, ranks, global_batch)
        row = {
            "ranks": ranks,
            "global_batch": global_batch,
            "requests_per_clip": round(requests / options.clips, 4),
            "bytes_per_useful_byte": round(received / int(order.size.sum()), 2),
        }
        table.add_row(*map(str, row.values()))
        found.append(row)
    cli.make_console().print(table)
    if options.out:
        what = {"clips": options.clips, "bytes": int(order.size.sum()), "window_bytes": WINDOW_BYTES}
        write_json(options.out, {"machine": {"python": platform.python_version()}, **what, "cases": found})
    return 0


def corpus(clips: int) -> tuple[np.ndarray, list[Extent], ShardOrder]:
    """Samples and places of clips that lie one after another in shards."""
    seconds = np.clip(np.random.default_rng(0).lognormal(1.3, 0.6, clips), 0.5, 20.0)
    samples = (seconds * RATE).astype(np.int64)
    size = (samples * BYTES_PER_SAMPLE).astype(np.int64)
    begin = np.cumsum(size) - size
    shard = begin // SHARD_BYTES
    offset = begin - begin[np.searchsorted(shard, shard)]
    block = np.unique(shard * SHARD_BYTES + offset // BLOCK_BYTES, return_inverse=True)[1]
    places = zip(shard.tolist(), offset.tolist(), size.tolist(), strict=True)
    extents = [Extent("", 0, f"{tar:06d}.tar", at, length, 0, 0) for tar, at, length in places]
    return samples, extents, ShardOrder(block, size, WINDOW_BYTES)


def ask(samples: np.ndarray, extents: list[Extent], order: ShardOrder, ranks: int, global_batch: int) -> tuple[int, int]:
    """Requests and bytes of all ranks in an epoch, as `data.read_ahead` plans them window by window."""
    steps = epoch_steps(np.arange(len(samples)), 0, 0, global_batch, order=order)
    requests = received = 0
    for rank in range(ranks):
        of_window: dict[int, set[int]] = defaultdict(set)
        for micros in step_micro_batches(steps, samples, BatchSpec(ranks, BUDGET_S * RATE), rank):
            for micro in micros:
                assert micro.clips.windows is not None
                for window, position in zip(micro.clips.windows.tolist(), micro.clips.positions.tolist(), strict=True):
                    of_window[window].add(position)
        for positions in of_window.values():
            wanted = [extents[position] for position in positions]
            for members in find_spans(wanted):
                first, last = wanted[members[0]], wanted[members[-1]]
                requests, received = requests + 1, received + last.offset + last.size - first.offset
    return requests, received


if __name__ == "__main__":
    cli.run_main(main)
