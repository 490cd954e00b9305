"""Is a packed dataset what was packed? Everything is read: `python -m ser_hpc.shards.verify SHARDS`."""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ser_hpc import console
from ser_hpc.errors import UserError
from ser_hpc.shards import audio
from ser_hpc.shards.index import (
    DATASET,
    DESCRIPTION,
    PACK_AGAIN,
    Shard,
    check_tar_size,
    describe_dataset,
    read_dataset,
    read_table,
)


def verify(root: Path) -> list[str]:
    """Every problem in words, none if all is well: each tar's sha256, its members against its index, each clip's sound."""
    try:
        dataset = read_dataset(root)
    except UserError as error:
        return [str(error)]
    shards = [Shard(**shard) for shard in dataset["shards"]]
    problems = [problem for shard in shards for problem in _check_shard(root, shard)]
    if describe_dataset(shards) != dataset:
        problems.append(f"{root / DATASET}: its totals or fingerprint do not follow from its list of shards")
    return problems


def _check_shard(root: Path, shard: Shard) -> Iterator[str]:
    try:
        check_tar_size(root, shard)
    except UserError as error:
        yield str(error)
    path = root / shard.path
    if not path.is_file():
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield f"shard {path} is damaged: its content is not what was packed (sha256)"
    try:
        rows = read_table(root, shard).to_pylist()
    except UserError as error:
        yield str(error)
        return
    if len(rows) != shard.clips:
        yield f"shard {path}: {DATASET} counts {shard.clips} clips, its index {len(rows)}"
    try:
        with tarfile.open(path, "r:") as tar:
            members = [(member.name, member.offset_data, member.size) for member in tar]
    except tarfile.TarError as error:
        yield f"shard {path} is not a whole tar: {error}"
        return
    expected = [f"{row['key']}.{suffix}" for row in rows for suffix in ("flac", "json")]
    if [name for name, _, _ in members] != expected:
        yield f"shard {path}: its members are not those of its index"
        return
    content = path.read_bytes()
    for row, payload, description in zip(rows, members[::2], members[1::2], strict=True):
        for problem in _check_clip(row, content, payload, description):
            yield f"clip {row['key']} in shard {path}: {problem}"


def _check_clip(
    row: dict[str, Any], content: bytes, payload: tuple[str, int, int], description: tuple[str, int, int]
) -> Iterator[str]:
    """What is wrong with one clip; `payload` and `description` are its members as (name, offset, size)."""
    if payload[1:] != (row["offset"], row["size"]):
        yield f"lies at {payload[1:]}, but its index says {(row['offset'], row['size'])} (offset, size)"
    flac = content[payload[1] : payload[1] + payload[2]]
    if zlib.crc32(flac) != row["crc32"]:
        yield "its bytes are not those that were packed (crc32)"
    try:
        samples = audio.decode_flac(flac)
        if len(samples) != row["num_samples"]:
            yield f"has {len(samples)} samples instead of {row['num_samples']}"
        elif audio.sound_hash(samples) != row["sound"]:
            yield "does not sound as packed (hash of its samples)"
    except audio.BadClipError as error:
        yield str(error)
    try:
        described = json.loads(content[description[1] : description[1] + description[2]])
        if any(described[name] != row[name] for name in (*DESCRIPTION, "num_samples", "sound")):
            yield "its JSON and its index differ"
    except (ValueError, KeyError, TypeError) as error:
        yield f"its JSON is damaged ({error})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ser_hpc.shards.verify",
        description="Read every shard of a packed dataset and name everything that is not as it was packed. Exit code 1 if so.",
    )
    parser.add_argument("shards", type=Path, metavar="SHARDS", help=f"the folder that was packed into, with its {DATASET}")
    root: Path = parser.parse_args(argv).shards
    problems = verify(root)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems. To mend: {PACK_AGAIN}.")
        return 1
    print(f"{root}: every shard is as it was packed.")
    return 0


if __name__ == "__main__":
    console.run(main)
