"""How planning grows with the corpus: `python tools/bench/scale.py FOLDER [--clips 100000 1000000 ...] [--out FILE]`.

For each number of clips a packed corpus is made whose indices are real and whose tars are only as long as they would be
(sparse files), with the durations of IEMOCAP (log-normal, mean 4.5 s, sd 3.1 s) and ids that lie in no order over the shards.
Then, each in a process of its own: a launch loads the index, and plans and checks five folds; a rank loads it, reads these
folds and draws an epoch. Both with the file of the whole index, and without, as a corpus of earlier versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SPEAKERS_PER_GROUP = 20
GLOBAL_BATCH = 256
RANKS = 64
BUDGET_SECONDS = 240


def make(folder: Path, clips: int, shard_mb: int, *, indices: bool) -> pa.RecordBatch:
    """A packed corpus of `clips` clips without sound, of the layout of earlier versions: without a file of the whole index,
    which is returned. `indices`: with those of its shards."""
    from ser_hpc.core.atomic_io import write_json
    from ser_hpc.shards.assignment import estimated_bytes
    from ser_hpc.shards.index import DATASET, Shard, dataset_description

    rng = np.random.default_rng(0)
    sigma2 = np.log(1 + (3.1 / 4.5) ** 2)
    seconds = np.clip(rng.lognormal(np.log(4.5) - sigma2 / 2, np.sqrt(sigma2), clips), 0.5, 30)
    per_shard = max(1, shard_mb * 1_000_000 // estimated_bytes(4.5, 1))
    whole = _whole_index(rng, (seconds * 16_000).astype(np.int64), per_shard)
    shards = []
    for number, start in enumerate(range(0, clips, per_shard)):
        rows = whole.slice(start, per_shard)
        group = f"speakers_{number % 64:02d}"
        path = f"{group}/scale-{group}-{number:06d}.tar"
        tar = folder / path
        tar.parent.mkdir(parents=True, exist_ok=True)
        length = rows.column("offset")[-1].as_py() + rows.column("size")[-1].as_py() + 2560
        with tar.open("wb") as file:
            file.truncate(length)
        content = _parquet(rows) if indices else b""
        tar.with_suffix(".parquet").write_bytes(content)
        digest, index_digest = (hashlib.sha256(each).hexdigest() for each in (f"{number}".encode(), content))
        total = float(rows.column("num_samples").to_numpy().sum()) / 16_000
        shards.append(Shard(path, "scale", group, len(rows), total, length, digest, index_digest))
    write_json(folder / DATASET, dataset_description(shards))
    return whole


def _whole_index(rng: np.random.Generator, samples: np.ndarray, per_shard: int) -> pa.RecordBatch:
    from ser_hpc.shards.mapped_index import WORDS

    clips = len(samples)
    size = (samples * 2 * 0.64).astype(np.int64)
    ends = np.cumsum(size + 2560)
    shard, place = np.divmod(np.arange(clips), per_shard)
    offset = ends - size - 2560 + 512
    offset -= (offset - 512)[shard * per_shard]
    names = rng.permutation(clips)
    for start in range(0, clips, per_shard):
        names[start : start + per_shard].sort()
    speaker = (shard % 64) * SPEAKERS_PER_GROUP + place % SPEAKERS_PER_GROUP
    speakers = [f"spk{number:05d}" for number in range(64 * SPEAKERS_PER_GROUP)]
    words = {
        "corpus": _words(np.zeros(clips), ["scale"]),
        "speaker": _words(speaker, speakers, pa.int16()),
        "emotion": _words(np.arange(clips) % 4, ["angry", "happy", "neutral", "sad"]),
        "gender": _words(speaker % 2, ["female", "male"]),
    }
    digits = [(48 + names // 10**power % 10).astype(np.uint8) for power in range(8, -1, -1)]  # 48: "0"
    sound = np.frombuffer(b"0123456789abcdef", np.uint8)[rng.integers(0, 16, (clips, 32), dtype=np.uint8)]
    columns = {
        "offset": pa.array(offset),
        "size": pa.array(size),
        "num_samples": pa.array(samples),
        "crc32": pa.array(rng.integers(0, 2**32, clips, dtype=np.uint32)),
        "utterance_id": _texts(np.stack([*(np.full(clips, letter, np.uint8) for letter in b"clip"), *digits], axis=1)),
        "sound": _texts(sound),
    }
    return pa.RecordBatch.from_pydict(columns | {name: words.get(name, _words(np.zeros(clips), [""])) for name in WORDS})


def _words(codes: np.ndarray, names: list[str], code: pa.DataType | None = None) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes).cast(code or pa.int8()), pa.array(names, pa.large_string()))


def _texts(letters: np.ndarray) -> pa.Array:
    clips, length = letters.shape
    offsets = np.arange(clips + 1, dtype=np.int64) * length
    return pa.LargeStringArray.from_buffers(clips, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(letters)))


def _nothing(field: pa.Field, count: int) -> pa.Array:
    if pa.types.is_floating(field.type):
        return pa.nulls(count, field.type)
    return pa.repeat(pa.scalar(0 if pa.types.is_integer(field.type) else "", field.type), count)


def _parquet(rows: pa.RecordBatch) -> bytes:
    """As a shard's index is written."""
    from ser_hpc.shards.index import SCHEMA

    count, ids = len(rows), rows.column("utterance_id").cast(pa.string())
    known = {name: rows.column(name) for name in rows.schema.names}
    known |= {"key": pc.binary_join_element_wise("scale", ids, "-"), "source": pc.binary_join_element_wise(ids, "wav", ".")}
    columns = {field.name: known[field.name] if field.name in known else _nothing(field, count) for field in SCHEMA}
    table = pa.table({name: column.cast(SCHEMA.field(name).type) for name, column in columns.items()}, SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


class Meter:
    """Wall and CPU seconds of one thing after another, and this process's private memory: at most, and at its end."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self._ended = threading.Event()
        self._peak_kb = 0
        self._began = (time.perf_counter(), time.process_time())
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self._peak_kb = max(self._peak_kb, _kb("/proc/self/status", "RssAnon"))

    def told(self, name: str) -> None:
        """Note what was done since the last call."""
        wall, cpu = (now - before for now, before in zip((time.perf_counter(), time.process_time()), self._began, strict=True))
        left = _kb("/proc/self/status", "RssAnon")  # what no other rank shares: of a mapped file nothing
        self._peak_kb = max(self._peak_kb, left)
        memory = {"private_gb": round(left / 1e6, 2), "private_gb_at_most": round(self._peak_kb / 1e6, 2)}
        self.figures[name] = {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)} | memory
        self._peak_kb = 0
        self._began = (time.perf_counter(), time.process_time())


def _kb(path: str, *names: str) -> int:
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return sum(int(words[1]) for words in lines if words[0].removesuffix(":") in names)


def measure_launch(folder: Path) -> dict[str, Any]:
    """What a launch does; by the code of earlier versions too."""
    from ser_hpc.corpora.labels import label_set_as_annotated
    from ser_hpc.protocols.folds import plan_folds
    from ser_hpc.shards.index import ShardIndex

    meter = Meter()
    index = ShardIndex.load(folder)
    meter.told("load the index")
    labels = label_set_as_annotated(index.metadata)
    folds = plan_folds(index.metadata, labels, "speaker_groups", 5)
    meter.told("plan 5 folds")
    try:
        from ser_hpc.run.fold_file import write_folds
        from ser_hpc.run.plan import PARTS
        from ser_hpc.run.run_dir import RunDir
    except ImportError:
        return meter.figures | {"digest": folds.digest}
    write_folds(RunDir(folder), folds, len(index.metadata))
    parts = [
        {"fold": fold.index} | {name: asdict(getattr(fold, name)) | {"positions": None} for name in PARTS}
        for fold in folds.folds
    ]
    plan = {"protocol": folds.protocol, "notes": folds.notes, "folds": parts, "folds_digest": folds.digest}
    (folder / "plan.json").write_text(json.dumps(plan))
    meter.told("write the folds")
    return meter.figures | {"digest": folds.digest}


def measure_rank(folder: Path) -> dict[str, Any]:
    """What one rank of RANKS does, from the folder to the micro-batches of an epoch."""
    from ser_hpc.corpora.labels import label_set_as_annotated
    from ser_hpc.data.sampler import BatchSpec, epoch_steps, step_micro_batches
    from ser_hpc.run.fold_file import read_folds
    from ser_hpc.run.run_dir import RunDir
    from ser_hpc.shards.index import ShardIndex

    meter = Meter()
    index = ShardIndex.load(folder)
    meter.told("load the index")
    targets = label_set_as_annotated(index.metadata).targets(index.metadata)
    folds = read_folds(RunDir(folder), json.loads((folder / "plan.json").read_text()), index.metadata, ())
    if folds is None or not (targets[folds.folds[0].train.positions] >= 0).all():
        raise SystemExit("the folds are not those that were planned")
    meter.told("read 5 folds")
    steps = epoch_steps(folds.folds[0].train.positions, 0, 0, GLOBAL_BATCH)
    meter.told("draw an epoch")
    some = steps[: min(len(steps), 1000)]
    micros = sum(
        len(step) for step in step_micro_batches(some, index.num_samples, BatchSpec(RANKS, BUDGET_SECONDS * 16_000), 0)
    )
    meter.told("cut 1000 steps")
    return meter.figures | {"steps_of_an_epoch": len(steps), "micro_batches_of_rank_0": micros}


def rows(folder: Path, clips: int, shard_mb: int, before: Path | None, older: bool) -> dict[str, Any]:
    """Make a corpus and measure it in every way; `older`: without its file of the whole index too."""
    from ser_hpc.core.atomic_io import write_json
    from ser_hpc.shards.index import DATASET, Shard, dataset_description, read_dataset
    from ser_hpc.shards.mapped_index import INDEX, write_index

    whole = make(folder, clips, shard_mb, indices=older)
    shards = [Shard(**shard) for shard in read_dataset(folder)["shards"]]
    found: dict[str, Any] = {"clips": clips, "shards": len(shards)}
    if before and older:
        found["launch, earlier version"] = _run(folder, "launch", before, repeats=1)
    if older:
        found["launch, indices of the shards"] = _run(folder, "launch", repeats=1)
    write_json(folder / DATASET, dataset_description(shards, (), write_index(folder / INDEX, whole)))
    del whole
    repeats = 2 if older else 1
    found["launch, mapped"] = _run(folder, "launch", repeats=repeats)
    found["rank, mapped"] = _run(folder, "rank", repeats=repeats)
    if len({kind["digest"] for kind in found.values() if isinstance(kind, dict) and "digest" in kind}) != 1:
        raise SystemExit("the ways plan other folds")
    if older:
        found["parquet_mb"] = round(sum(path.stat().st_size for path in folder.glob("*/*.parquet")) / 1e6, 1)
    found["arrow_mb"] = round((folder / INDEX).stat().st_size / 1e6, 1)
    return found


def _run(folder: Path, kind: str, code: Path | None = None, *, repeats: int) -> dict[str, Any]:
    """Measure in a process of its own, several times: the quickest, by CPU seconds, is kept."""
    command = [sys.executable, __file__, str(folder), "--measure", kind]
    here = os.environ | {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(code)} if code else {})
    outputs = (subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=here).stdout for _ in range(repeats))
    found: list[dict[str, Any]] = [json.loads(output) for output in outputs]
    return min(found, key=lambda each: sum(part["cpu_seconds"] for part in each.values() if isinstance(part, dict)))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where the make-believe corpora are made, and removed afterwards")
    options.add_argument("--clips", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    options.add_argument("--shard-mb", type=int, default=256)
    options.add_argument("--out", type=Path, help="write the figures there as JSON")
    options.add_argument("--before", type=Path, metavar="CHECKOUT", help="measure an earlier version of the package too")
    options.add_argument("--older", type=int, default=10_000_000, help="up to how many clips to measure without that file too")
    options.add_argument("--measure", choices=["launch", "rank"], help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.measure:
        print(json.dumps({"launch": measure_launch, "rank": measure_rank}[given.measure](given.folder)))
        return 0
    found = []
    for clips in given.clips:
        folder = given.folder / f"scale-{clips}"
        found.append(rows(folder, clips, given.shard_mb, given.before, older=clips <= given.older))
        print(json.dumps(found[-1], indent=1), flush=True)
        shutil.rmtree(folder)
        if given.out:
            told = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "python": platform.python_version()}
            told["command"] = f"python tools/bench/scale.py FOLDER --clips {' '.join(str(row['clips']) for row in found)}"
            given.out.write_text(json.dumps(told | {"rows": found}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
