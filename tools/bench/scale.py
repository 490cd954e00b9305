"""How planning grows with the corpus: `python tools/bench/scale.py FOLDER [--clips 100000 1000000 ...] [--out FILE]`.

For each number of clips a packed corpus is made whose indices are real and whose tars are only as long as they would be (sparse
files), with the durations of IEMOCAP (log-normal, mean 4.5 s, sd 3.1 s). Then, in a process of its own, what a rank does at its
start and in an epoch: load the index, plan the folds, draw an epoch, cut its steps into micro-batches.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SPEAKERS_PER_GROUP = 20
GLOBAL_BATCH = 256
RANKS = 64
BUDGET_SECONDS = 240


def make(folder: Path, clips: int, shard_mb: int) -> None:
    """A packed corpus of `clips` clips without sound."""
    from ser_hpc.core.atomic_io import write_json
    from ser_hpc.shards.assignment import estimated_bytes
    from ser_hpc.shards.index import DATASET, SCHEMA, Shard, dataset_description

    rng = np.random.default_rng(0)
    sigma2 = np.log(1 + (3.1 / 4.5) ** 2)
    seconds = np.clip(rng.lognormal(np.log(4.5) - sigma2 / 2, np.sqrt(sigma2), clips), 0.5, 30)
    per_shard = max(1, shard_mb * 1_000_000 // estimated_bytes(4.5, 1))
    shards = []
    for number, start in enumerate(range(0, clips, per_shard)):
        stop = min(start + per_shard, clips)
        group = f"speakers_{number % 64:02d}"
        path = f"{group}/scale-{group}-{number:06d}.tar"
        samples = (seconds[start:stop] * 16_000).astype(np.int64)
        size = (samples * 2 * 0.64).astype(np.int64)
        offset = np.concatenate([[0], np.cumsum(size + 2560)[:-1]]) + 512
        ids = [f"clip{i:09d}" for i in range(start, stop)]
        who = [f"spk{(number % 64) * SPEAKERS_PER_GROUP + i % SPEAKERS_PER_GROUP:05d}" for i in range(stop - start)]
        count = stop - start
        known = {
            "key": [f"scale-{name}" for name in ids],
            "utterance_id": ids,
            "offset": offset,
            "size": size,
            "num_samples": samples,
            "crc32": rng.integers(0, 2**32, count, dtype=np.uint32),
            "sound": [hashlib.sha256(name.encode()).hexdigest()[:32] for name in ids],
            "corpus": ["scale"] * count,
            "speaker": who,
            "emotion": [("angry", "happy", "neutral", "sad")[i % 4] for i in range(count)],
            "gender": [("female", "male")[int(name[3:]) % 2] for name in who],
            "source": [f"{name}.wav" for name in ids],
        }
        content = _parquet(pa.table({field.name: known.get(field.name, [_nothing(field)] * count) for field in SCHEMA}, SCHEMA))
        tar = folder / path
        tar.parent.mkdir(parents=True, exist_ok=True)
        length = int(offset[-1] + size[-1] + 2560)
        with tar.open("wb") as file:
            file.truncate(length)
        tar.with_suffix(".parquet").write_bytes(content)
        digest = hashlib.sha256(f"{number}".encode()).hexdigest()
        total, index_digest = float(samples.sum()) / 16_000, hashlib.sha256(content).hexdigest()
        shards.append(Shard(path, "scale", group, count, total, length, digest, index_digest))
    write_json(folder / DATASET, dataset_description(shards))


def _nothing(field: pa.Field) -> object:
    return None if pa.types.is_floating(field.type) else 0 if pa.types.is_integer(field.type) else ""


def _parquet(table: pa.Table) -> bytes:
    """As a shard's index is written."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def measure(folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of one rank of RANKS, from the folder to the micro-batches of an epoch."""
    from ser_hpc.corpora.labels import label_set_as_annotated
    from ser_hpc.data.sampler import BatchSpec, epoch_steps, step_micro_batches
    from ser_hpc.protocols.folds import plan_folds
    from ser_hpc.shards.index import ShardIndex

    figures: dict[str, Any] = {}
    began = time.perf_counter()

    def told(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        figures[name] = {"seconds": round(now - began, 3), "peak_gb": round(_peak_gb(), 2)}
        began = time.perf_counter()

    index = ShardIndex.load(folder)
    told("load the index")
    labels = label_set_as_annotated(index.metadata)
    folds = plan_folds(index.metadata, labels, "speaker_groups", 5)
    told("plan 5 folds")
    positions = folds.folds[0].train.positions
    steps = epoch_steps(positions, 0, 0, GLOBAL_BATCH)
    told("draw an epoch")
    some = steps[: min(len(steps), 1000)]
    micros = sum(
        len(step) for step in step_micro_batches(some, index.num_samples, BatchSpec(RANKS, BUDGET_SECONDS * 16_000), 0)
    )
    told("cut 1000 steps")
    epoch = epoch_steps(np.arange(len(index.num_samples)), 0, 1, GLOBAL_BATCH)
    told("draw an epoch of all clips")
    size = sum(path.stat().st_size for path in folder.glob("*/*.parquet"))
    seconds = float(index.metadata.seconds.sum())
    return figures | {
        "clips": len(index.num_samples),
        "shards": len(index.shards),
        "index_mb": round(size / 1e6, 1),
        "index_bytes_per_clip": round(size / len(index.num_samples), 1),
        "steps_of_an_epoch": len(epoch),
        "micro_batches_of_rank_0": micros,
        "reads_per_second_of_64_gpus": round(RANKS * 3900 / (seconds / len(index.num_samples))),
    }


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where the make-believe corpora are made, and removed afterwards")
    options.add_argument("--clips", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    options.add_argument("--shard-mb", type=int, default=256)
    options.add_argument("--out", type=Path, help="write the figures there as JSON")
    options.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.measure:
        print(json.dumps(measure(given.folder)))
        return 0
    rows = []
    for clips in given.clips:
        folder = given.folder / f"scale-{clips}"
        make(folder, clips, given.shard_mb)
        command = [sys.executable, __file__, str(folder), "--measure"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        rows.append(json.loads(done.stdout))
        print(json.dumps(rows[-1], indent=1), flush=True)
        shutil.rmtree(folder)
    if given.out:
        told = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "python": platform.python_version(), "rows": rows}
        given.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
