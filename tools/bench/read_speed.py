"""How fast training data is read on one core, against the limit and against other ways, side by side.

python tools/bench/read_speed.py SHARDS [--rounds 7] [--out tools/bench/results/read_speed.json]

limit        each clip's payload by `pread`, decoded: nothing checked, nothing collated
ours         BatchSource: micro-batches of an epoch in its own order, checked, collated to int16 tensors, one thread ahead
kept         the same in any epoch but the first, where the decoded clips fit into memory (data.cache_gb)
webdataset   its own pipeline over the same tars: shuffled shards and a shuffle buffer, decoded by the same function
datasets     the Hugging Face library: clips saved to disk as its Audio, shuffled, its bytes decoded to float32 by soundfile
             (its own decoder needs FFmpeg)
file folder  one file a clip, opened at random by soundfile, decoded to float32

Everything in this process, bound to one core; seconds are that core's (user and system), which others on the machine do not
change. The files are read before anything is measured, so no disk is. In each round every way reads all the clips, the order
of the ways turning; its speed is divided by that of the limit in the same round.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import datasets
import numpy as np
import soundfile
import webdataset
from rich.progress import track
from rich.table import Table

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.data.batches import BatchSource
from ser_hpc.data.sampler import BatchSpec, epoch_steps, step_micro_batches
from ser_hpc.shards import RATE
from ser_hpc.shards.audio import decode_flac
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import Extent, clip_extents
from ser_hpc.tasks.task import ClipTargets

GLOBAL_BATCH, BUDGET_S = 32, 80.0
Way = Callable[[int], int]  # round -> samples read


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    index = ShardIndex.load(options.shards)
    clips = clip_extents(index, np.arange(len(index.metadata)))
    tars = [options.shards / shard.path for shard in index.shards]
    with (
        tempfile.TemporaryDirectory() as folder,
        open_tars(tars) as descriptors,
        source_of(index, 0) as source,
        source_of(index, 1 << 40) as keeping,
    ):
        payloads = [os.pread(descriptors[clip.tar], clip.size, clip.offset) for clip in clips]
        ways: dict[str, Way] = {
            "limit": lambda number: limit(clips, descriptors, number),
            "ours": lambda number: ours(source, index, number),
            "kept": lambda number: ours(keeping, index, number),
            "webdataset": lambda number: stream(tars, number),
            "datasets": hugging_face(payloads, Path(folder)),
            "file folder": file_folder(payloads, Path(folder)),
        }
        seconds = measure(ways, int(index.num_samples.sum()), options.rounds)
    audio = float(index.metadata.seconds.sum())
    report = {
        name: {
            "audio_s_per_s": round(audio / median(times)),
            "ratio_to_limit": [round(value, 3) for value in spread(seconds["limit"], times)],
        }
        for name, times in seconds.items()
    }
    show(report, len(clips), audio)
    if options.out:
        machine = {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        corpora = sorted(set(index.metadata.corpus.tolist()))
        what = {"corpora": corpora, "clips": len(clips), "audio_s": round(audio), "rounds": options.rounds}
        write_json(options.out, {"machine": machine, **what, "ratio": "[least, median, most] over the rounds", "ways": report})
    return 0


def measure(ways: dict[str, Way], samples: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round; a first round is not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in track(range(rounds + 1), "reading"):
        names = list(ways)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.process_time()
            read = ways[name](number)
            took = time.process_time() - began
            assert read == samples, f"{name} read {read} samples of {samples}"
            if number:
                seconds[name].append(took)
    return seconds


def spread(limits: Sequence[float], times: Sequence[float]) -> tuple[float, float, float]:
    """Least, median and most of the speed as a part of the limit's."""
    ratios = [limit / own for limit, own in zip(limits, times, strict=True)]
    return min(ratios), median(ratios), max(ratios)


def show(report: dict[str, dict[str, object]], clips: int, audio: float) -> None:
    table = Table("way", "audio-s/s", "of the limit: least, median, most", title=f"{clips} clips, {audio:,.0f} s")
    for name, row in report.items():
        table.add_row(name, f"{row['audio_s_per_s']:,}", str(row["ratio_to_limit"]))
    cli.make_console().print(table)


class open_tars:  # noqa: N801  (a context manager that reads as a function)
    """Descriptors of the tars, by their path in the dataset."""

    def __init__(self, tars: Sequence[Path]) -> None:
        self.descriptors = {f"{tar.parent.name}/{tar.name}": os.open(tar, os.O_RDONLY) for tar in tars}

    def __enter__(self) -> dict[str, int]:
        return self.descriptors

    def __exit__(self, *_: object) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)


def limit(clips: Sequence[Extent], descriptors: dict[str, int], number: int) -> int:
    order = np.random.default_rng(number).permutation(len(clips)).tolist()
    chosen = [(descriptors[clips[i].tar], clips[i].size, clips[i].offset) for i in order]
    return sum(len(decode_flac(os.pread(*clip))) for clip in chosen)


def source_of(index: ShardIndex, keep_bytes: int) -> BatchSource:
    count = len(index.metadata)
    return BatchSource(
        index, ClipTargets.of_main(np.zeros(count, dtype=np.int64), np.ones(count, dtype=np.float32)), keep_bytes=keep_bytes
    )


def ours(source: BatchSource, index: ShardIndex, number: int) -> int:
    steps = epoch_steps(np.arange(len(index.metadata)), 0, number, GLOBAL_BATCH)
    micros = step_micro_batches(steps, index.num_samples, BatchSpec(1, round(BUDGET_S * RATE)), 0)
    return sum(len(batch.samples) for batch in source.prefetch((micro for step in micros for micro in step), training=True))


def stream(tars: Sequence[Path], number: int) -> int:
    pipeline = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=len(tars), seed=number, detshuffle=True)
    pipeline = pipeline.shuffle(1000, seed=number).decode(webdataset.handle_extension("flac", decode_flac)).to_tuple("flac")
    return sum(len(samples) for (samples,) in pipeline)


def hugging_face(payloads: Sequence[bytes], folder: Path) -> Way:
    kept = datasets.Dataset.from_dict({"audio": [{"bytes": payload, "path": None} for payload in payloads]})
    kept.cast_column("audio", datasets.Audio(decode=False)).save_to_disk(str(folder / "datasets"))
    clips = datasets.load_from_disk(str(folder / "datasets"))
    return lambda number: sum(len(as_float(io.BytesIO(row["audio"]["bytes"]))) for row in clips.shuffle(seed=number))


def file_folder(payloads: Sequence[bytes], folder: Path) -> Way:
    paths = [folder / f"{i}.flac" for i in range(len(payloads))]
    for path, payload in zip(paths, payloads, strict=True):
        path.write_bytes(payload)
    return lambda number: sum(len(as_float(paths[i])) for i in shuffled(len(payloads), number))


def as_float(file: io.BytesIO | Path) -> np.ndarray:
    samples, _ = soundfile.read(file, dtype="float32")
    return np.asarray(samples)


def shuffled(count: int, number: int) -> Iterator[int]:
    order = list(range(count))
    random.Random(number).shuffle(order)
    return iter(order)


if __name__ == "__main__":
    cli.run_main(main)
