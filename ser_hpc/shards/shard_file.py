"""One shard: a plan becomes a tar and its index, whole or not at all.

The tar is plain USTAR with fixed times, owner and mode, so equal input gives equal bytes. It is renamed into place first, its
index second: a tar with an index is finished, and the index records from what it was made (`source_hash`).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.errors import UserError
from ser_hpc.files import aside
from ser_hpc.shards import audio
from ser_hpc.shards.index import SCHEMA, Shard, index_path, parse_index
from ser_hpc.shards.plan import ShardPlan, describe, source_hash
from ser_hpc.shards.report import BadClip
from ser_hpc.shards.workers import check_stopped

_RECORD = b"ser_hpc"  # the key of our record in the Parquet file's own metadata


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a plan. `shard` is None if nothing was written: no clip was left, or bad ones were not to be skipped."""

    plan: ShardPlan
    shard: Shard | None
    bad: tuple[BadClip, ...]


class _UnwantedError(Exception):
    """Leaves `aside` without keeping the file."""


def write_shard(plan: ShardPlan, out: Path, skip_bad: bool) -> Written:
    """Write a plan's tar and index. Raises UserError if the disk is full; then nothing half-written is there."""
    tar = out / plan.path
    bad: list[BadClip] = []
    record: dict[str, Any] = {"source_hash": source_hash(plan)}  # before decoding: a source that changes now is seen next time
    with disk_errors_in_words(tar):
        try:
            with aside(tar) as temporary:
                rows = _write_tar(temporary, plan, bad)
                if not rows or (bad and not skip_bad):
                    raise _UnwantedError
                record |= {"bytes": temporary.stat().st_size, "sha256": _sha256(temporary)}
        except _UnwantedError:
            index_path(tar).unlink(missing_ok=True)
            tar.unlink(missing_ok=True)
            return Written(plan, None, tuple(bad))
        content = _parquet(rows, record | {"skipped": {clip.key: clip.reason for clip in bad}})
        with aside(index_path(tar)) as temporary:
            temporary.write_bytes(content)
    return _written(plan, parse_index(content), content)


def finished_shard(plan: ShardPlan, out: Path) -> Written | None:
    """What an earlier run wrote for this very plan and these very sources; None if it is not there, whole and unchanged."""
    tar = out / plan.path
    try:
        content = index_path(tar).read_bytes()
        table = parse_index(content)
        record = _record(table)
        if not table.schema.equals(SCHEMA) or record["bytes"] != tar.stat().st_size:
            return None
        if record["source_hash"] != source_hash(plan) or record["sha256"] != _sha256(tar):
            return None
        return _written(plan, table, content)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


@contextmanager
def disk_errors_in_words(path: Path) -> Iterator[None]:
    """A full disk, a quota, a folder that may not be written: a UserError naming `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Nothing half-written is left and finished shards are kept: "
            "mend that and run the same command again"
        ) from error


def _write_tar(path: Path, plan: ShardPlan, bad: list[BadClip]) -> list[dict[str, Any]]:
    """The rows of what was written; clips that do not decode are added to `bad`."""
    rows = []
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for utterance in plan.utterances:
            check_stopped()
            try:
                clip = audio.decode(utterance.audio_path, utterance.start_s, utterance.end_s)
            except audio.BadClipError as error:
                bad.append(BadClip(utterance.key, utterance.audio_path, str(error)))
                continue
            rows.append(_add_clip(tar, file, utterance, clip))
    return rows


def _add_clip(tar: tarfile.TarFile, file: BinaryIO, utterance: Utterance, clip: audio.Clip) -> dict[str, Any]:
    payload = audio.encode_flac(clip.samples)
    described = describe(utterance)
    sound = {"rate_hz": audio.RATE, "num_samples": len(clip.samples), "sound": audio.sound_hash(clip.samples)}
    offset = file.tell() + tarfile.BLOCKSIZE  # behind the member's header
    _add_member(tar, f"{utterance.key}.flac", payload)
    _add_member(tar, f"{utterance.key}.json", json.dumps(described | sound, allow_nan=False, ensure_ascii=False).encode())
    return {
        "key": utterance.key,
        "offset": offset,
        "size": len(payload),
        "num_samples": len(clip.samples),
        "crc32": zlib.crc32(payload),
        "sound": sound["sound"],
        "clipped": clip.clipped,
        **described,
    }


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its defaults: time 0, owner 0, no owner's name, mode 0644
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _parquet(rows: list[dict[str, Any]], record: dict[str, Any]) -> bytes:
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({_RECORD: json.dumps(record).encode()}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _record(table: pa.Table) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_RECORD, b"{}"))
    return record


def _written(plan: ShardPlan, table: pa.Table, content: bytes) -> Written:
    record = _record(table)
    seconds = sum(table.column("num_samples").to_pylist()) / audio.RATE
    digest = hashlib.sha256(content).hexdigest()
    shard = Shard(plan.path, plan.corpus, plan.group, table.num_rows, seconds, record["bytes"], record["sha256"], digest)
    paths = {utterance.key: utterance.audio_path for utterance in plan.utterances}
    return Written(plan, shard, tuple(BadClip(key, paths[key], reason) for key, reason in record["skipped"].items()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
