"""Read the index of a packed dataset: where every clip lies, and everything known about it, without opening a tar.

    OUT/dataset.json                            written last: a folder without it is not a finished dataset
    OUT/pack_report.json                        counts, and everything found wrong with clips and what was done about it
    OUT/plan.json                               which clip belongs into which tar, for when clips are added
    OUT/<group>/<corpus>-<group>-000000.tar     <key>.flac and <key>.json of each clip, one after the other, keys sorted
    OUT/<group>/<corpus>-<group>-000000.parquet one row a clip of that tar, in its order (`clipped` to
                                                `cancelled`: quality.ClipMeasurements); its sources, and what was left out

A clip's *position* is its row over all shards, in dataset.json's order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.utterance import COLUMNS, Metadata, TextColumn
from ser_hpc.shards import RATE
from ser_hpc.shards.overlaps import overlap_groups, pieces
from ser_hpc.shards.storage import Location, size

LAYOUT_VERSION = 2  # of tars, indexes, plan.json and dataset.json; a change of it re-packs everything
DATASET = "dataset.json"
REPORT = "pack_report.json"
_AHEAD = 256  # indices in memory
_AT_ONCE = 16  # requests: network file systems and stores answer slowly, but many at a time
PACK_AGAIN = "pack the corpus again with the same command: only what is missing or damaged is rebuilt"

_WORDS = ("corpus", "utterance_id", "speaker", "emotion", "session", "gender", "text_id", "split", "intensity", "language")
_NUMBERS = ("arousal", "valence", "dominance", "start_s", "end_s")
SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("num_samples", pa.int64())]
    + [("crc32", pa.uint32()), ("sound", pa.string()), ("clipped", pa.float64()), ("level_db", pa.float64())]
    + [(name, pa.string()) for name in ("doubtful", "out_of_range", "cancelled")]  # messages, "" where all is well
    + [(name, pa.string()) for name in (*_WORDS, "source", "extra")]  # `extra`: a JSON object, "" if it is empty
    + [("recording", pa.string())]  # size and CRC-32 of the source file, by which pieces of one are known
    + [(name, pa.float64()) for name in _NUMBERS]
)
_NEEDED = ("key", "offset", "size", "num_samples", "crc32", "sound", *_WORDS, "extra")
_SHARED = (*COLUMNS, "extra")
_TEXTS = ("utterance_id", "sound")
_LARGEST_INDEX = 1 << 30  # bytes, unpacked
_PATH = re.compile(r"(?P<group>[A-Za-z0-9_-]{1,64})/(?P<corpus>[a-z0-9_]{1,24})-(?P=group)-\d{6}\.tar")
DESCRIPTION = (*_WORDS, "source", "extra", *_NUMBERS)  # what a row shares with the clip's JSON


@dataclass(frozen=True, slots=True)
class Shard:
    """One finished tar: `path` relative to the dataset's folder; `index_sha256` is of the Parquet file beside it."""

    path: str
    corpus: str
    group: str
    clips: int
    seconds: float
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """One packed dataset or several together. Row i of every array, shape (num_clips,), is the clip at position i.

    `roots`: the datasets' folders; `shards[i]` lies in `roots[dataset[i]]`. `shard` int32: the row's shard; `offset`,
    `size` int64: the FLAC payload's bytes in that tar; `num_samples` int64 at 16 kHz; `crc32` uint32 of the payload.
    `fingerprints` (one a dataset) and `fingerprint` (of all) change with any byte of any shard. `distinct`: (corpus, column,
    name) of names that are nobody else's, however alike, as declared at packing.
    """

    roots: tuple[Location, ...]
    fingerprints: tuple[str, ...]
    metadata: Metadata
    shards: tuple[Shard, ...]
    dataset: tuple[int, ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    num_samples: np.ndarray
    crc32: np.ndarray
    distinct: frozenset[tuple[str, str, str]] = frozenset()

    @classmethod
    def load(cls, *roots: Location) -> ShardIndex:
        """Read the indices of one dataset or several; these come in the order of their fingerprints, however they are listed.

        Raises UserError: no finished dataset, another layout version, a shard or its index missing or changed, one twice.
        """
        found = {root: read_dataset(root) for root in roots}
        ordered = sorted(found, key=lambda root: found[root]["fingerprint"])
        fingerprints = tuple(found[root]["fingerprint"] for root in ordered)
        if len(set(fingerprints)) < len(roots):
            raise UserError(f"the same packed corpus is given twice: {listed([str(root) for root in roots])}")
        shards = [(number, Shard(**shard)) for number, root in enumerate(ordered) for shard in found[root]["shards"]]
        places, packed = [ordered[number] for number, _ in shards], [shard for _, shard in shards]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(check_tar_size, places, packed))
            table = _Pieces()
            for start in range(0, len(packed), _AHEAD):
                part = slice(start, start + _AHEAD)
                contents = pool.map(_read_index, places[part], packed[part])
                for rows in map(_rows, places[part], packed[part], contents):
                    table.add(rows)
        numbers = {name: table.numbers(name) for name in ("offset", "size", "num_samples", "crc32")}
        return cls(
            tuple(ordered),
            fingerprints,
            table.metadata(numbers["num_samples"]),
            tuple(packed),
            tuple(number for number, _ in shards),
            np.repeat(np.arange(len(shards), dtype=np.int32), [shard.clips for shard in packed]),
            **numbers,
            distinct=frozenset(tuple(each) for root in ordered for each in found[root].get("distinct", [])),
        )

    @property
    def fingerprint(self) -> str:
        """The fingerprint of all datasets together."""
        if len(self.fingerprints) == 1:
            return self.fingerprints[0]
        return hashlib.sha256("\n".join(self.fingerprints).encode()).hexdigest()

    def numbers(self, name: str) -> np.ndarray:
        """Read a number column, or a field of `extra` that holds numbers: float64 (num_clips,), nan where a clip lacks it.

        Numbers are not kept in memory, as few runs ask for them. Raises UserError for an unknown column or a text in it.
        """
        if name in _NUMBERS:
            places = [self.roots[dataset] for dataset in self.dataset]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                columns = pool.map(lambda place, shard: _column(read_table(place, shard), name), places, self.shards)
                return np.concatenate([np.asarray(column, dtype=np.float64) for column in columns])
        texts = self.metadata.column(name)
        try:
            read = {text: float(text) if text else np.nan for text in set(texts.tolist())}
        except ValueError as error:
            raise UserError(f"column {name!r} is to hold numbers, but has a text in it: {error}") from None
        return np.array([read[text] for text in texts.tolist()])

    def key(self, position: int) -> str:
        """Return the name of a clip's members in its tar, without suffix."""
        return f"{self.metadata.corpus[position]}-{self.metadata.utterance_id[position]}"


def dataset_description(shards: Sequence[Shard], distinct: Iterable[tuple[str, str, str]] = ()) -> dict[str, Any]:
    """Return the content of dataset.json: no time, no path of this machine. `distinct`: see ShardIndex."""
    contents = "".join(f"{shard.path} {shard.sha256}\n" for shard in shards)
    return {
        "format": "ser_hpc shards",
        "version": LAYOUT_VERSION,
        "codec": "flac",
        "rate_hz": RATE,
        "corpora": sorted({shard.corpus for shard in shards}),
        "clips": sum(shard.clips for shard in shards),
        "seconds": round(sum(shard.seconds for shard in shards), 3),
        "bytes": sum(shard.bytes for shard in shards),
        "fingerprint": hashlib.sha256(f"{LAYOUT_VERSION}\n{contents}".encode()).hexdigest(),
        **({"distinct": sorted(map(list, distinct))} if distinct else {}),
        "shards": [asdict(shard) for shard in shards],
    }


def read_dataset(root: Location) -> dict[str, Any]:
    """Read dataset.json. Raises UserError if there is none, or it is not one that this version reads."""
    path = root / DATASET
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if any(root.glob("*/*-[0-9]*.tar")):
            raise UserError(
                f"{root} has shards but no {DATASET}: packing did not finish; run the same pack command again"
            ) from None
        raise UserError(
            f"{root} holds no packed corpus (no {DATASET}); make one: python -m ser_hpc.pack CORPUS ROOT {root}"
        ) from None
    try:
        dataset: dict[str, Any] = json.loads(content)
        version = dataset["version"]
        if version == LAYOUT_VERSION:
            if not dataset["shards"] or not isinstance(dataset["fingerprint"], str):
                raise ValueError("its list of shards is not complete")
            for shard in dataset["shards"]:
                _check_entry(Shard(**shard))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {PACK_AGAIN}") from error
    if version != LAYOUT_VERSION:
        raise UserError(f"{path}: layout version {version}, but this program reads {LAYOUT_VERSION}; pack the corpus again")
    return dataset


def _check_entry(shard: Shard) -> None:
    """Raise ValueError for what no packing wrote: above all a path that leads out of the dataset's folder."""
    for field in fields(Shard):
        value = getattr(shard, field.name)
        if type(value).__name__ != field.type or (field.type != "str" and value < 0):
            raise ValueError(f"a shard's {field.name} is {value!r}")
    match = _PATH.fullmatch(shard.path)
    if match is None or (match["group"], match["corpus"]) != (shard.group, shard.corpus):
        raise ValueError(f"{shard.path!r} is no path of a shard of {shard.corpus!r}, group {shard.group!r}")


def check_tar_size(root: Location, shard: Shard) -> None:
    """Raise UserError if a tar is missing or has another size than when it was packed."""
    try:
        found = size(root / shard.path)
    except FileNotFoundError:
        raise UserError(f"shard {root / shard.path} is missing; copy it again, or {PACK_AGAIN}") from None
    if found != shard.bytes:
        raise UserError(f"shard {root / shard.path} has {found} bytes instead of {shard.bytes}; copy it again, or {PACK_AGAIN}")


def read_table(root: Location, shard: Shard) -> pa.Table:
    """Read the rows of one shard. Raises UserError if its index is missing or not the one that was written with it."""
    return _rows(root, shard, _read_index(root, shard))


def _read_index(root: Location, shard: Shard) -> bytes:
    path = (root / shard.path).with_suffix(".parquet")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"index {path} is missing; copy it again, or {PACK_AGAIN}") from None
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise UserError(f"index {path} is damaged (other content than when it was packed); copy it again, or {PACK_AGAIN}")
    return content


def _rows(root: Location, shard: Shard, content: bytes) -> pa.Table:
    """Parse the rows of an index. Raises UserError where they are not of that tar, whoever wrote them."""
    path = (root / shard.path).with_suffix(".parquet")
    try:
        table = parse_index(content)
        if any(not table.schema.field(name).equals(SCHEMA.field(name)) for name in _NEEDED):
            raise ValueError("its columns are others")
        offset, size, length = (_column(table, name) for name in ("offset", "size", "num_samples"))
        ends = offset + size
        if len(offset) != shard.clips or not (offset > 0).all() or not (offset < ends).all() or not (ends <= shard.bytes).all():
            raise ValueError("its clips do not lie in the tar")
        if not (length > 0).all() or any(table.column(name).null_count for name in _NEEDED):
            raise ValueError("its clips have no length, or no name")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"index {path} is not what packing writes ({error}); copy it again, or {PACK_AGAIN}") from error
    return table


def parse_index(content: bytes) -> pa.Table:
    """Parse a shard's index. Raises pyarrow.ArrowException, OSError or ValueError if it is damaged or a decompression bomb.

    No threads and no Python file: with either, arrow's pool may outlive the interpreter, and a program that ends at once aborts
    instead of returning its exit code (arrow issues 33975 and 34314; here one run in eight).
    """
    file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False, page_checksum_verification=True)
    announced = sum(file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups))
    if announced > _LARGEST_INDEX:
        raise ValueError(f"it announces {announced} bytes")
    return file.read(use_threads=False)


def index_path(tar: Path) -> Path:
    """Return the path of the index beside a tar."""
    return tar.with_suffix(".parquet")


class _Pieces:
    """Columns put together from many shards: each is let go as it is joined, and words that many clips share are numbers.

    At 10^7 clips that is a gigabyte instead of ten.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, list[pa.Array]] = defaultdict(list)
        self._recordings: list[tuple[int, tuple[np.ndarray, ...] | None]] = []

    def add(self, rows: pa.Table) -> None:
        for name in ("offset", "size", "num_samples", "crc32"):
            self._arrays[name].append(_column(rows, name))
        for name in _TEXTS:
            self._arrays[name] += rows.column(name).cast(pa.large_string()).chunks
        for name in _SHARED:
            self._arrays[name] += rows.column(name).dictionary_encode().chunks
        self._recordings.append((len(rows), pieces(rows)))

    def numbers(self, name: str) -> np.ndarray:
        return np.concatenate(self._arrays.pop(name))

    def metadata(self, num_samples: np.ndarray) -> Metadata:
        columns: dict[str, Any] = {name: self._strings(name) for name in _SHARED}
        columns |= {name: TextColumn(pa.concat_arrays(self._arrays.pop(name))) for name in _TEXTS}
        return Metadata(**columns, seconds=num_samples / RATE, overlap=self._overlap())

    def _overlap(self) -> np.ndarray | None:
        """Return `overlap_groups` over all shards: pieces of one recording may lie in several."""
        if not (some := [found for _, found in self._recordings if found is not None]):
            return None
        groups = overlap_groups(*(np.concatenate(columns) for columns in zip(*some, strict=True)))
        of_piece = np.concatenate([np.full(clips, found is not None) for clips, found in self._recordings])
        overlap = np.full(len(of_piece), -1, dtype=np.int32)
        overlap[of_piece] = groups
        return overlap

    def _strings(self, name: str) -> np.ndarray:
        encoded = pa.concat_arrays(pa.chunked_array(self._arrays.pop(name)).unify_dictionaries().chunks)
        names = np.array(encoded.dictionary.to_pylist(), dtype=object)
        return np.broadcast_to(names, len(encoded)) if len(names) == 1 else np.asarray(names[encoded.indices.to_numpy()])


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).to_numpy())
