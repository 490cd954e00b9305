"""Write one shard, a tar and its index, whole or not at all; a finished one is recognised and kept.

The tar is plain USTAR with fixed times, owner and mode, so equal input gives equal bytes. It is renamed into place first, then
its acoustic fingerprints, its index last: a tar with an index is finished. The index records its sources (`source_hash`) and
what was measured of the clips that were left out, so that whoever comes later can judge all clips again without decoding them.
A shard of which no clip is left has an index and no tar.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards import RATE
from ser_hpc.shards.assignment import ShardPlan, describe_utterance, source_digests, source_hash
from ser_hpc.shards.audio import decode_flac
from ser_hpc.shards.encode import blocks, encode_clip
from ser_hpc.shards.fingerprint import NO_WORDS, fingerprint
from ser_hpc.shards.fingerprint_file import SUFFIX, read_fingerprints, write_fingerprints
from ser_hpc.shards.index import SCHEMA, Shard, index_path, parse_index
from ser_hpc.shards.quality import ClipMeasurements, QualityRules
from ser_hpc.shards.tar_members import BLOCK, tar_end, tar_header, tar_padding
from ser_hpc.shards.task_pool import check_stopped

_RECORD = b"ser_hpc"  # the key of our record in the Parquet file's own metadata
_BROKEN = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)
_BUFFER = 1 << 20  # bytes that are written at once
_MEASURES = ["key", "num_samples", "clipped", "level_db", "sound", "doubtful", "out_of_range", "cancelled"]


@dataclass(frozen=True, slots=True)
class Written:
    """A written shard. `clips`: measurements of every planned clip, in the plan's order; `packed`: keys of those in the tar.

    `shard` is None if no clip was left for it.
    """

    plan: ShardPlan
    shard: Shard | None
    clips: tuple[ClipMeasurements, ...]
    packed: frozenset[str]


def write_shard(
    plan: ShardPlan, out: Path, rules: QualityRules, fingerprinted: bool, without: frozenset[str] | None = None
) -> Written:
    """Write a plan's tar and index, `without` these clips; None: without those that the rules drop on their own account.

    `fingerprinted`: with the file of its clips' acoustic fingerprints.

    Clips of an existing shard that was made from the same sources are copied, not encoded again. Raises UserError if the disk
    is full or `out` cannot be written; then nothing half-written is there.
    """
    tar = out / plan.path

    def unwanted(clip: ClipMeasurements) -> bool:
        return rules.drops(clip) if without is None else clip.key in without

    with explain_disk_errors(tar), _existing_shard(plan, out) as existing:
        digests = dict(existing.digests)
        with write_aside(tar) as temporary:
            rows, dropped, prints, digest = _write_tar(
                temporary, plan, existing, rules, unwanted, digests, fingerprinted=fingerprinted
            )
            record = {"bytes": temporary.stat().st_size, "sha256": digest} if rows else {"bytes": 0, "sha256": ""}
        if not rows:
            index_path(tar).unlink(missing_ok=True)
            tar.unlink()
        if rows and fingerprinted:
            write_fingerprints(tar, digest, prints)
        else:
            tar.with_suffix(SUFFIX).unlink(missing_ok=True)
        record = {"source_hash": source_hash(plan, digests)} | record | {"dropped": [asdict(clip) for clip in dropped]}
        index = _Index.make(rows, record)
        content = index.serialised()
        with write_aside(index_path(tar)) as temporary:
            temporary.write_bytes(content)
    return _written(plan, index, content)


def finished_shard(plan: ShardPlan, out: Path, rules: QualityRules) -> Written | None:
    """Return what an earlier run wrote for this plan from the same sources; None if it is not there, whole and unchanged.

    Also None where a clip that is wanted now was left out without being decoded.
    """
    tar = out / plan.path
    try:
        content = index_path(tar).read_bytes()
        index = _Index.parse(content)
        record = index.record
        if record["source_hash"] != source_hash(plan, source_digests(plan)) or index.serialised() != content:
            return None
        if record["bytes"] and (record["bytes"] != tar.stat().st_size or record["sha256"] != _sha256(tar)):
            return None
        written = _written(plan, index, content)
    except _BROKEN:
        return None
    return written if all(clip.sound or rules.drops(clip) for clip in written.clips) else None


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn OSError (a full disk, a quota, a folder that may not be written) into UserError naming `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Nothing half-written is left and finished shards are kept: "
            "mend that and run the same command again"
        ) from error


@dataclass(frozen=True, slots=True)
class _ExistingShard:
    """The clips of an existing shard that is to be replaced, and the digests of their sources, which are as they were then.

    Its tar is open, since another part may replace it meanwhile.
    """

    descriptor: int = -1
    digests: dict[Path, str] = field(default_factory=dict)
    measured: dict[str, ClipMeasurements] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    prints: dict[str, np.ndarray] = field(default_factory=dict)

    def payload(self, key: str) -> BinaryIO | None:
        """Return a clip's FLAC as it was packed, None if it is not there."""
        if key not in self.places:
            return None
        offset, size = self.places[key]
        return io.BytesIO(os.pread(self.descriptor, size, offset))


@contextmanager
def _existing_shard(plan: ShardPlan, out: Path) -> Iterator[_ExistingShard]:
    """Open the existing shard, if it was made from these sources and is undamaged; else an empty one."""
    tar = out / plan.path
    try:
        index = _Index.parse(index_path(tar).read_bytes())
        measured = {clip.key: clip for clip in index.measured()}
        columns = (index.table.column(name).to_pylist() for name in ("key", "offset", "size"))
        places = {key: (offset, size) for key, offset, size in zip(*columns, strict=True)}
        file = tar.open("rb")
    except _BROKEN:
        yield _ExistingShard()
        return
    with file:
        digests = source_digests(plan)
        same = index.record["source_hash"] == source_hash(plan, digests)
        whole = hashlib.file_digest(file, "sha256").hexdigest() == index.record["sha256"]
        prints = _prints(tar, index)
        yield _ExistingShard(file.fileno(), digests, measured, places, prints) if same and whole else _ExistingShard()


def _prints(tar: Path, index: _Index) -> dict[str, np.ndarray]:
    """Return the fingerprints of a shard's clips by key, as far as they are there."""
    keys = index.table.column("key").to_pylist()
    if (found := read_fingerprints(tar, index.record["sha256"], len(keys))) is None:
        return {}
    words, lengths = found
    return dict(zip(keys, np.split(words, np.cumsum(lengths)[:-1]), strict=True))


def _write_tar(
    path: Path,
    plan: ShardPlan,
    existing: _ExistingShard,
    rules: QualityRules,
    unwanted: Callable[[ClipMeasurements], bool],
    digests: dict[Path, str],
    *,
    fingerprinted: bool,
) -> tuple[list[dict[str, Any]], list[ClipMeasurements], list[np.ndarray], str]:
    """Write a tar; return the rows of what was written, what was left out, the fingerprints, and the file's SHA-256.

    `digests` is completed: of every source.
    """
    rows: list[dict[str, Any]] = []
    dropped: list[ClipMeasurements] = []
    prints: list[np.ndarray] = []
    at, digest = 0, hashlib.sha256()
    with path.open("wb", buffering=_BUFFER) as file:
        for utterance in plan.utterances:
            check_stopped()
            clip, payload = existing.measured.get(utterance.key), existing.payload(utterance.key)
            words = existing.prints.get(utterance.key)
            if clip is None or (payload is None and not unwanted(clip)):
                clip, payload, words = encode_clip(
                    utterance, rules, unwanted, path.parent, digests, fingerprinted=fingerprinted
                )
            if payload is None or unwanted(clip):
                announced = clip.announced()
                dropped.append(announced if rules.drops(announced) else clip)  # the same, heard or not
                continue
            if words is None:
                words = fingerprint(decode_flac(b"".join(blocks(payload)))) if fingerprinted else NO_WORDS
            prints.append(words)
            with payload:
                row, content = _members(utterance, clip, payload, at)
                rows.append(row | {"recording": digests[utterance.audio_path]})
                for part in content:
                    at += file.write(part)
                    digest.update(part)
        digest.update(end := tar_end(at))
        file.write(end)
    return rows, dropped, prints, digest.hexdigest()


def _members(
    utterance: Utterance, clip: ClipMeasurements, payload: BinaryIO, at: int
) -> tuple[dict[str, Any], Iterator[bytes]]:
    """Return a clip's row, and its two members, in parts, as they lie in a tar from byte `at` on."""
    described = describe_utterance(utterance)
    sound = {"rate_hz": RATE, "num_samples": clip.num_samples, "sound": clip.sound}
    text = json.dumps(described | sound, allow_nan=False, ensure_ascii=False).encode()
    size, crc = payload.seek(0, os.SEEK_END), 0
    for block in blocks(payload):
        crc = zlib.crc32(block, crc)

    def content() -> Iterator[bytes]:
        yield tar_header(f"{utterance.key}.flac", size)
        yield from blocks(payload)
        yield tar_padding(size) + tar_header(f"{utterance.key}.json", len(text)) + text + tar_padding(len(text))

    place = {"offset": at + BLOCK, "size": size, "crc32": crc}  # behind the member's header
    return {name: getattr(clip, name) for name in _MEASURES} | place | described, content()


@dataclass(frozen=True, slots=True)
class _Index:
    """The content of an index file: a row a packed clip, and the record of how the shard was made."""

    table: pa.Table
    record: dict[str, Any]

    @classmethod
    def make(cls, rows: list[dict[str, Any]], record: dict[str, Any]) -> _Index:
        table = pa.Table.from_pylist(rows, SCHEMA)
        return cls(table, record | {"check": _check(table, record)})

    @classmethod
    def parse(cls, content: bytes) -> _Index:
        """Parse an index file. Raises one of _BROKEN if it is damaged: Parquet's checksums omit its headers and our record."""
        table = parse_index(content)
        record = json.loads(table.schema.metadata[_RECORD])
        if not table.schema.equals(SCHEMA) or record.pop("check") != (check := _check(table, record)):
            raise ValueError("not as it was written")
        return cls(table, record | {"check": check})

    def serialised(self) -> bytes:
        """Return the file's content; the same bytes for the same rows and record (and version of pyarrow)."""
        sink = pa.BufferOutputStream()
        table = self.table.replace_schema_metadata({_RECORD: json.dumps(self.record)})
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        content: bytes = sink.getvalue().to_pybytes()
        return content

    def measured(self) -> list[ClipMeasurements]:
        return [ClipMeasurements(**row) for row in [*self.table.select(_MEASURES).to_pylist(), *self.record["dropped"]]]


def _check(table: pa.Table, record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([table.to_pylist(), record]).encode()).hexdigest()


def _written(plan: ShardPlan, index: _Index, content: bytes) -> Written:
    """Describe a shard by its index. Raises KeyError where that is not of the plan's clips."""
    record = index.record
    clips = {clip.key: clip for clip in index.measured()}
    packed = frozenset(index.table.column("key").to_pylist())
    shard = None
    if packed:
        seconds = sum(index.table.column("num_samples").to_pylist()) / RATE
        digest = hashlib.sha256(content).hexdigest()
        shard = Shard(plan.path, plan.corpus, plan.group, len(packed), seconds, record["bytes"], record["sha256"], digest)
    return Written(plan, shard, tuple(clips[utterance.key] for utterance in plan.utterances), packed)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
