"""Keep the index of all shards of a dataset as one Arrow file, which the ranks of a node map into memory and share.

    OUT/index.arrow     an Arrow IPC stream (`pyarrow.ipc.open_stream`) of one batch, uncompressed: a row a clip, by position;
                        words as dictionaries. dataset.json has its layout, bytes and sha256, without which it is not read

What is mapped was hashed first, and is checked as a stranger's: nothing in it is unpacked, and no number in it leads out of it.
A file that is replaced stays whole for those who have mapped it, except on NFS, and one that is overwritten where it lies does
not: packing replaces it only where its content is another.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.corpora.utterance import COLUMNS
from ser_hpc.shards.overlaps import overlap_groups, pieces

INDEX = "index.arrow"
LAYOUT = 1
NUMBERS = ("offset", "size", "num_samples", "crc32")
TEXTS = ("utterance_id", "sound")
WORDS = (*COLUMNS, "extra")
_TEXT = pa.large_string()
_CODES = (pa.int8(), pa.int16(), pa.int32())
_FIXED = [("offset", pa.int64()), ("size", pa.int64()), ("num_samples", pa.int64()), ("crc32", pa.uint32())]
# Only where clips are pieces of recordings: `begins` is -inf for those that are none.
_PIECES = [("overlap", pa.int32()), ("recording", pa.int64()), ("begins", pa.float64()), ("ends", pa.float64())]


@dataclass(frozen=True, slots=True)
class IndexFile:
    """What dataset.json says of the file."""

    layout: int
    bytes: int
    sha256: str


def join_indices(tables: Iterable[pa.Table]) -> pa.RecordBatch:
    """Join the indices of shards; each is let go as it is joined, and words that many clips share become numbers.

    At 10^7 clips that is a gigabyte instead of ten.
    """
    arrays: dict[str, list[pa.Array]] = defaultdict(list)
    recordings: list[tuple[int, tuple[np.ndarray, ...] | None]] = []
    for rows in tables:
        for name in NUMBERS:
            arrays[name] += rows.column(name).chunks
        for name in TEXTS:
            arrays[name] += rows.column(name).cast(_TEXT).chunks
        for name in WORDS:
            arrays[name] += rows.column(name).cast(_TEXT).dictionary_encode().chunks
        recordings.append((len(rows), pieces(rows)))
    columns: dict[str, pa.Array] = {name: pa.concat_arrays(arrays.pop(name)) for name in (*NUMBERS, *TEXTS)}
    columns |= {name: _narrow(arrays.pop(name)) for name in WORDS} | _piece_columns(recordings)
    return pa.RecordBatch.from_pydict(columns)


def _narrow(encoded: list[pa.DictionaryArray]) -> pa.DictionaryArray:
    """Join encoded columns to one whose codes are as narrow as they can be."""
    whole = pa.concat_arrays(pa.chunked_array(encoded).unify_dictionaries().chunks)
    code = next(kind for kind in _CODES if len(whole.dictionary) <= 1 << (kind.bit_width - 1))
    return pa.DictionaryArray.from_arrays(whole.indices.cast(code), whole.dictionary)


def _piece_columns(recordings: list[tuple[int, tuple[np.ndarray, ...] | None]]) -> dict[str, pa.Array]:
    if all(found is None for _, found in recordings):
        return {}
    nothing = (0, -np.inf, -np.inf)
    parts = [found or tuple(np.full(clips, value) for value in nothing) for clips, found in recordings]
    recording, begins, ends = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    overlap = find_overlaps(recording.astype(np.int64), begins, ends)
    return {name: pa.array(values) for (name, _), values in zip(_PIECES, (overlap, recording, begins, ends), strict=True)}


def find_overlaps(recording: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return `overlap_groups` of the clips that are pieces (`begins` is finite), -1 for the others: int32 (num_clips,)."""
    overlap = np.full(len(begins), -1, dtype=np.int32)
    some = np.isfinite(begins)
    overlap[some] = overlap_groups(recording[some], begins[some], ends[some])
    return overlap


def write_index(path: Path, batch: pa.RecordBatch) -> IndexFile:
    """Write the file, and return what dataset.json is to say of it; one that has this content already is left alone."""
    counter = _HashingSink()
    _write(pa.PythonFile(counter, "w"), batch)
    described = IndexFile(LAYOUT, counter.bytes, counter.digest.hexdigest())
    try:
        map_index(path, described)
    except (OSError, ValueError, pa.ArrowException):
        with write_aside(path) as temporary:
            _write(pa.OSFile(str(temporary), "wb"), batch)
    return described


class _HashingSink:
    """A file that hashes what is written to it, and keeps nothing."""

    closed = False

    def __init__(self) -> None:
        self.digest, self.bytes = hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.bytes += len(content)
        return len(content)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _write(sink: Any, batch: pa.RecordBatch) -> None:
    options = pa.ipc.IpcWriteOptions(compression=None, allow_64bit=True, use_threads=False)
    with sink, pa.ipc.new_stream(sink, batch.schema, options=options) as stream:
        stream.write_batch(batch)


def map_index(path: Path, described: IndexFile) -> pa.RecordBatch:
    """Map the file into memory. Raises OSError; ValueError or pyarrow.ArrowException where it is not what packing wrote."""
    return parse_index_file(map_content(path, described))


def map_content(path: Path, described: IndexFile) -> pa.Buffer:
    """Map the bytes of the file. Raises OSError; ValueError where they are others than dataset.json says."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe in its place would never open
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != described.bytes:
            raise ValueError(f"it has {status.st_size} bytes instead of {described.bytes}")
        if hashlib.file_digest(file, "sha256").hexdigest() != described.sha256:
            raise ValueError("other content than when it was packed")
        return pa.py_buffer(mmap.mmap(descriptor, described.bytes, access=mmap.ACCESS_READ))


def parse_index_file(content: pa.Buffer) -> pa.RecordBatch:
    """Parse the file's content without a copy. Raises ValueError, pyarrow.ArrowException where packing wrote no such thing."""
    try:
        for number, message in enumerate(pa.ipc.MessageReader.open_stream(pa.BufferReader(content))):
            if number > len(WORDS) + 1 or _is_compressed(message):
                raise ValueError("it is compressed, or has too many parts")
        batch = pa.ipc.open_stream(pa.BufferReader(content)).read_next_batch()
    except (struct.error, StopIteration) as error:  # a message without a body, a schema without a batch
        raise ValueError(f"its structure is broken ({error})") from error
    schema = batch.schema
    expected = [*_FIXED, *((name, _TEXT) for name in TEXTS), *((name, None) for name in WORDS)]
    expected += _PIECES if len(schema) > len(expected) else []
    if [field.name for field in schema] != [name for name, _ in expected]:
        raise ValueError("its columns are others")
    for field, (_, kind) in zip(schema, expected, strict=True):
        coded = pa.types.is_dictionary(field.type) and field.type.index_type in _CODES and field.type.value_type == _TEXT
        if field.type != kind if kind else not coded:
            raise ValueError(f"its column {field.name} is another")
    batch.validate(full=True)
    for name in WORDS:
        words = batch.column(name).dictionary
        if words.null_count or len(words.unique()) != len(words):
            raise ValueError(f"its column {name} has a word twice")
    if any(column.null_count for column in batch.columns):
        raise ValueError("its clips lack something")
    if "overlap" in schema.names:  # a number of a group, and no more groups than clips: it sizes tables
        overlap = batch.column("overlap").to_numpy()
        if ((overlap < -1) | (overlap >= len(batch))).any():
            raise ValueError("its column overlap numbers what is not there")
    return batch


def _is_compressed(message: Any) -> bool:
    """Tell whether a message's body is to be decompressed, which Arrow does at whatever length it announces.

    Arrow has checked the message's flatbuffer when it read it: a table begins with the distance to its list of fields.
    """
    content = memoryview(message.metadata)

    def field(table: int, number: int) -> int:
        fields = table - struct.unpack_from("<i", content, table)[0]
        size = struct.unpack_from("<H", content, fields)[0]
        offset = struct.unpack_from("<H", content, fields + 4 + 2 * number)[0] if 4 + 2 * number < size else 0
        return table + offset if offset else 0

    def follow(place: int) -> int:
        return place + int(struct.unpack_from("<I", content, place)[0])

    header = follow(field(follow(0), 2))
    if message.type == "dictionary":
        header = follow(field(header, 1))
    return message.type != "schema" and field(header, 3) != 0
