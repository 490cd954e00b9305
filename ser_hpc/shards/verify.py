"""Check that packed datasets are undamaged, by reading all of them: `python -m ser_hpc.shards.verify SHARDS`.

Shards may come from strangers: whatever they hold, nothing is executed, unpacked or written, and memory stays bounded (by one
clip).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ser_hpc.core import cli
from ser_hpc.core.errors import UserError, counted
from ser_hpc.shards import RATE, audio
from ser_hpc.shards.fingerprint_file import SUFFIX, read_fingerprints
from ser_hpc.shards.index import (
    DATASET,
    DESCRIPTION,
    PACK_AGAIN,
    Shard,
    check_tar_size,
    dataset_description,
    join_dataset,
    map_dataset,
    read_dataset,
    read_table,
)
from ser_hpc.shards.mapped_index import INDEX, LAYOUT, IndexFile
from ser_hpc.shards.tar_members import LARGEST_FLAC, LARGEST_JSON, TarMember, iter_members


def verify(root: Path) -> list[str]:
    """Return a message for every problem: each tar's sha256, its members against its index, each clip's samples."""
    try:
        dataset = read_dataset(root)
    except UserError as error:
        return [str(error)]
    shards = [Shard(**shard) for shard in dataset["shards"]]
    problems = [problem for shard in shards for problem in _check_shard(root, shard)]
    index = IndexFile(**dataset["index"]) if "index" in dataset else None
    if index is not None and index.layout == LAYOUT:
        problems += _check_mapped(root, shards, index)
    if dataset_description(shards, [tuple(names) for names in dataset.get("distinct", [])], index) != dataset:
        problems.append(f"{root / DATASET}: its totals or fingerprint do not follow from its list of shards")
    return problems


def _check_mapped(root: Path, shards: Sequence[Shard], index: IndexFile) -> Iterator[str]:
    """Compare the index of the whole dataset with those of its shards."""
    try:
        mapped = map_dataset(root, shards, index)
    except UserError as error:
        yield str(error)
        return
    try:
        joined = join_dataset(root, shards)
    except UserError:
        return  # it is among the shards' problems
    if not mapped.equals(joined):
        yield f"index {root / INDEX} is not that of its shards"


def _check_shard(root: Path, shard: Shard) -> Iterator[str]:
    path = root / shard.path
    try:
        check_tar_size(root, shard)
    except UserError as error:
        yield str(error)
    if not path.is_file():
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield f"shard {path} is damaged: its content is not what was packed (sha256)"
        found = []
        for member in iter_members(file, path.stat().st_size, 2 * shard.clips + 1):
            if isinstance(member, TarMember):
                found.append(member)
            else:
                yield f"shard {path}: {member}"
        try:
            rows = read_table(root, shard).to_pylist()
        except UserError as error:
            yield str(error)
            return
        prints = path.with_suffix(SUFFIX)
        if prints.exists() and read_fingerprints(path, shard.sha256, shard.clips) is None:
            yield f"fingerprints {prints} are damaged, or of another tar; without the file, near-duplicates are looked for anew"
        if round(sum(row["num_samples"] for row in rows) / RATE, 3) != round(shard.seconds, 3):
            yield f"shard {path}: {DATASET} says {shard.seconds} s, its index differs"
        if [member.name for member in found] != [f"{row['key']}.{suffix}" for row in rows for suffix in ("flac", "json")]:
            yield f"shard {path}: its members are not those of its index"
            return
        for row, payload, description in zip(rows, found[::2], found[1::2], strict=True):
            for problem in _check_clip(row, file, payload, description):
                yield f"clip {row['key']} in shard {path}: {problem}"


def _check_clip(row: dict[str, Any], file: BinaryIO, payload: TarMember, description: TarMember) -> Iterator[str]:
    """Yield what is wrong with one clip."""
    if row["key"] != f"{row['corpus']}-{row['utterance_id']}":
        yield f"its index names it {row['corpus']}-{row['utterance_id']}"
    if (payload.offset, payload.size) != (row["offset"], row["size"]):
        yield f"lies at {(payload.offset, payload.size)}, but its index says {(row['offset'], row['size'])} (offset, size)"
    file.seek(payload.offset)
    flac = file.read(min(payload.size, LARGEST_FLAC))
    if zlib.crc32(flac) != row["crc32"]:
        yield "its bytes are not those that were packed (crc32)"
    try:
        length, sound = audio.measure_flac(flac)
        if length != row["num_samples"]:
            yield f"has {length} samples instead of {row['num_samples']}"
        elif sound != row["sound"]:
            yield "does not sound as packed (hash of its samples)"
    except audio.BadClipError as error:
        yield str(error)
    file.seek(description.offset)
    try:
        described = json.loads(file.read(min(description.size, LARGEST_JSON)))
        if any(described[name] != row[name] for name in (*DESCRIPTION, "num_samples", "sound")):
            yield "its JSON and its index differ"
        extra = json.loads(row["extra"] or "{}")
        if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
            yield "its `extra` is not a JSON object of words"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        yield f"its JSON is damaged ({error})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ser_hpc.shards.verify",
        description="Read every shard of packed datasets and name everything that is not as it was packed. Exit code 1 if so.",
    )
    parser.add_argument("shards", type=Path, nargs="+", metavar="SHARDS", help=f"folders that were packed into, with {DATASET}")
    roots: list[Path] = parser.parse_args(argv).shards
    total = 0
    for root in roots:
        problems = verify(root)
        for problem in problems:
            print(problem)
        if not problems:
            print(f"{root}: every shard is as it was packed.")
        total += len(problems)
    if total:
        print(f"{counted(total, 'problem')}. To mend: {PACK_AGAIN}.")
    return 1 if total else 0


if __name__ == "__main__":
    cli.run_main(main)
