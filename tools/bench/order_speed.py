"""What an epoch asks of a store that answers slowly: in the random order, by shards, and as webdataset streams it.

python tools/bench/order_speed.py EMODB [--copies 8] [--window-mb 64] [--delay-ms 5] \\
    [--out tools/bench/results/order_speed.json]

Emo-DB is packed several times, each time as a session of its own, and served by a web server of this file, in a process of its
own, that answers ranges, waits before each answer, and counts requests and bytes. Each way reads one epoch over it, all clips,
decoded; each rank in a process of its own, all at once:

random       data.order=random: a micro-batch's clips are asked for together, neighbours with one request
one by one   the same, clip after clip, as a parallel file system is read without data.prefetch_mb
shards       data.order=shards: a window's clips are read ahead, a block with one request
webdataset   its own pipeline: whole shards through curl, shuffled, and a shuffle buffer of as many clips as a window has

`bytes_per_useful_byte`: what all ranks received, of the clips' packed bytes. `cpu_s`: of all ranks together. `memory_mb`: what
a rank's peak is above that before it read. Clips a second are by the clock, and so change with what else the machine does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import webdataset
from rich.table import Table

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.corpora.parsers import emodb
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.data.batches import BatchSource
from ser_hpc.data.sampler import BatchSpec, MicroBatch, ShardOrder, epoch_steps, step_micro_batches
from ser_hpc.shards import RATE
from ser_hpc.shards.audio import decode_flac
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.quality import DEFAULTS, QualityRules
from ser_hpc.shards.read import ClipReader, clip_extents
from ser_hpc.shards.storage import parse_location
from ser_hpc.shards.write import pack
from ser_hpc.tasks.task import ClipTargets

GLOBAL_BATCH, BUDGET_S = 32, 80.0
RANKS = (1, 2)
FORKS = multiprocessing.get_context("forkserver")  # of a process that has imported all and asked nothing
FORKS.set_forkserver_preload(["ser_hpc.data.batches", "ser_hpc.shards.write", "ser_hpc.corpora.parsers.emodb", "webdataset"])
Way = Callable[[ShardIndex, int, int, int], int]  # index, bytes of a window, rank, ranks -> clips read


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emodb", type=Path)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--window-mb", type=int, default=64)
    parser.add_argument("--delay-ms", type=float, default=5.0)
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        rules = QualityRules({**DEFAULTS, "duplicate": "keep", "overlap": "keep"})
        pack(copied(options.emodb, options.copies), shards, workers=1, rules=rules)
        index = ShardIndex.load(shards)
        with served(shards, options.delay_ms / 1e3) as (url, counts):
            ways = {
                f"{name}, {ranks} rank{'s' * (ranks > 1)}": measure(
                    name, url, counts, ranks, options.window_mb * 1_000_000, index
                )
                for ranks in RANKS
                for name in WAYS
            }
    clips, size = len(index.metadata), int(index.size.sum())
    show(ways, f"{clips} clips, {size / 1e6:.0f} MB in {len(index.shards)} shards, {options.delay_ms:g} ms an answer")
    if options.out:
        machine = {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        what = {"clips": clips, "bytes": size, "shards": len(index.shards), "window_mb": options.window_mb}
        packages = {name: version(name) for name in ("aiohttp", "fsspec", "webdataset")}
        write_json(options.out, {"machine": machine, "packages": packages, **what, "delay_ms": options.delay_ms, "ways": ways})
    return 0


def copied(root: Path, copies: int) -> list[Utterance]:
    """Emo-DB several times: other ids and speakers, and each clip cut at random, so that lengths differ."""
    rng = np.random.default_rng(0)
    return [
        replace(
            clip,
            utterance_id=f"{clip.utterance_id}c{copy}",
            speaker=f"c{copy}-{clip.speaker}",
            session=f"copy{copy}",
            start_s=0.0,
            end_s=soundfile.info(clip.audio_path).duration * rng.uniform(0.4, 1.0),
        )
        for copy in range(copies)
        for clip in emodb.parse(root).utterances
    ]


class Handler(SimpleHTTPRequestHandler):
    """Answers after a while, with the range that was asked for, and counts."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, delay_s: float, requests: Any, sent: Any, **options: Any) -> None:
        self.delay_s, self.requests, self.sent = delay_s, requests, sent
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        with path.open("rb") as file:
            file.seek(int(wanted[1]) if wanted else 0)
            content = file.read(int(wanted[2]) + 1 - int(wanted[1]) if wanted else -1)
        time.sleep(self.delay_s)
        with self.requests.get_lock(), self.sent.get_lock():
            self.requests.value += 1
            self.sent.value += len(content)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: str, delay_s: float, requests: Any, sent: Any, port: Any) -> None:
    handler = partial(Handler, directory=folder, delay_s=delay_s, requests=requests, sent=sent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        port.put(server.server_port)
        server.serve_forever()


@contextmanager
def served(folder: Path, delay_s: float) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The folder's URL, and the counts of requests and of bytes."""
    requests, sent, port = FORKS.Value("q", 0), FORKS.Value("q", 0), FORKS.Queue()
    process = FORKS.Process(target=serve, args=(str(folder), delay_s, requests, sent, port), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}", (requests, sent)
    finally:
        process.terminate()
        process.join()


def measure(name: str, url: str, counts: tuple[Any, Any], ranks: int, window_bytes: int, index: ShardIndex) -> dict[str, float]:
    """One epoch of a way, each rank in a process of its own."""
    ready, answers = FORKS.Barrier(ranks + 1), FORKS.Queue()
    processes = [
        FORKS.Process(target=read, args=(name, url, window_bytes, rank, ranks, ready, answers)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    ready.wait()  # all have loaded the index
    for count in counts:
        count.value = 0
    ready.wait()
    found = [answers.get(timeout=1200) for _ in processes]
    for process in processes:
        process.join()
    clips = sum(one["clips"] for one in found)
    assert clips == len(index.metadata), f"{name} read {clips} clips of {len(index.metadata)}"
    requests, sent = (count.value for count in counts)
    return {
        "requests_per_clip": round(requests / clips, 4),
        "bytes_per_useful_byte": round(sent / int(index.size.sum()), 3),
        "clips_per_s": round(clips / max(one["seconds"] for one in found)),
        "cpu_s": round(sum(one["cpu_s"] for one in found), 2),
        "memory_mb": round(max(one["memory_mb"] for one in found)),
    }


def read(name: str, url: str, window_bytes: int, rank: int, ranks: int, ready: Any, answers: Any) -> None:
    """What a rank's process does."""
    index = ShardIndex.load(parse_location(url))
    decode_flac_once(index)
    ready.wait()
    ready.wait()
    before, began, cpu = peak_mb(), time.monotonic(), sum(os.times()[:4])
    clips = WAYS[name](index, window_bytes, rank, ranks)
    took = {"seconds": time.monotonic() - began, "cpu_s": sum(os.times()[:4]) - cpu, "memory_mb": peak_mb() - before}
    answers.put({"clips": clips, **took})


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def decode_flac_once(index: ShardIndex) -> None:
    """Connect to the store and load the decoder, so that neither is measured."""
    ClipReader(index.roots).read(clip_extents(index, [0]))


def micros_of(index: ShardIndex, rank: int, ranks: int, order: ShardOrder | None = None) -> Iterator[MicroBatch]:
    steps = epoch_steps(np.arange(len(index.metadata)), 0, 0, GLOBAL_BATCH, order=order)
    for step in step_micro_batches(steps, index.num_samples, BatchSpec(ranks, round(BUDGET_S * RATE)), rank):
        yield from step


def ours(index: ShardIndex, micros: Iterator[MicroBatch], ahead_bytes: int) -> int:
    count = len(index.metadata)
    targets = ClipTargets.of_main(np.zeros(count, dtype=np.int64), np.ones(count, dtype=np.float32))
    with BatchSource(index, targets, ahead_bytes=ahead_bytes) as source:
        return sum(len(batch.rows) for batch in source.prefetch(micros, training=True))


def in_random_order(index: ShardIndex, window_bytes: int, rank: int, ranks: int) -> int:
    return ours(index, micros_of(index, rank, ranks), 0)


def one_by_one(index: ShardIndex, window_bytes: int, rank: int, ranks: int) -> int:
    reader = ClipReader(index.roots)
    positions = np.concatenate([micro.clips.positions for micro in micros_of(index, rank, ranks) if not micro.is_filler])
    return sum(len(reader.read(clip_extents(index, [position]))) for position in positions.tolist())


def by_shards(index: ShardIndex, window_bytes: int, rank: int, ranks: int) -> int:
    return ours(index, micros_of(index, rank, ranks, ShardOrder.of_index(index, window_bytes)), window_bytes // ranks)


def stream(index: ShardIndex, window_bytes: int, rank: int, ranks: int) -> int:
    urls = [str(index.roots[0] / shard.path) for shard in index.shards][rank::ranks]
    buffer = window_bytes * len(index.metadata) // int(index.size.sum()) // ranks
    pipeline = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, detshuffle=True).shuffle(buffer, seed=0)
    pipeline = pipeline.decode(webdataset.handle_extension("flac", decode_flac)).to_tuple("flac")
    return sum(1 for _ in pipeline)


WAYS: dict[str, Way] = {"random": in_random_order, "one by one": one_by_one, "shards": by_shards, "webdataset": stream}


def show(ways: dict[str, dict[str, float]], title: str) -> None:
    columns: Sequence[str] = list(next(iter(ways.values())))
    table = Table("way", *(column.replace("_", " ") for column in columns), title=title)
    for name, row in ways.items():
        table.add_row(name, *(str(row[column]) for column in columns))
    cli.make_console().print(table)


if __name__ == "__main__":
    cli.run_main(main)
