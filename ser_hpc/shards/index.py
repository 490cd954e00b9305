"""Read the index of a packed dataset: where every clip lies, and everything known about it, without opening a tar.

    OUT/dataset.json                            written last: a folder without it is not a finished dataset
    OUT/pack_report.json                        counts, and everything found wrong with clips and what was done about it
    OUT/index.arrow                             the index of all tars, for mapping into memory (mapped_index.py)
    OUT/plan.json                               which clip belongs into which tar, for when clips are added
    OUT/<group>/<corpus>-<group>-000000.tar     <key>.flac and <key>.json of each clip, one after the other, keys sorted
    OUT/<group>/<corpus>-<group>-000000.parquet one row a clip of that tar, in its order (`clipped` to
                                                `cancelled`: quality.ClipMeasurements); its sources, and what was left out

Runs on the shards keep beside them what they share: OUT/shortcuts/ and OUT/scored/ (results/run_panel.py, score_ledger.py).
A clip's *position* is its row over all shards, in dataset.json's order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.utterance import Metadata, TextColumn
from ser_hpc.corpora.words import WordColumn
from ser_hpc.shards import RATE, mapped_index
from ser_hpc.shards.mapped_index import INDEX, NUMBERS, TEXTS, WORDS, IndexFile, find_overlaps, join_indices
from ser_hpc.shards.storage import Location, Url, open_on_node, size

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
_WIDE = pa.dictionary(pa.int32(), pa.large_string())
_LARGEST_INDEX = 1 << 30  # bytes, unpacked
_PATH = re.compile(r"(?P<group>[A-Za-z0-9_-]{1,64})/(?P<corpus>[a-z0-9_]{1,24})-(?P=group)-\d{6}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
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
        shards = [[Shard(**shard) for shard in found[root]["shards"]] for root in ordered]
        packed = [shard for of_dataset in shards for shard in of_dataset]
        batches = [_read_dataset_index(root, each, found[root]) for root, each in zip(ordered, shards, strict=True)]
        numbers = {name: _joined([batch.column(name).to_numpy() for batch in batches]) for name in NUMBERS}
        return cls(
            tuple(ordered),
            fingerprints,
            _metadata(batches, numbers["num_samples"]),
            tuple(packed),
            tuple(number for number, each in enumerate(shards) for _ in each),
            np.repeat(np.arange(len(packed), dtype=np.int32), [shard.clips for shard in packed]),
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
        occurring = {*texts.occurring()}
        try:
            read = [float(text) if text in occurring and text else np.nan for text in texts.names.tolist()]
        except ValueError as error:
            raise UserError(f"column {name!r} is to hold numbers, but has a text in it: {error}") from None
        found: np.ndarray = np.array(read)[texts.codes]
        return found

    def key(self, position: int) -> str:
        """Return the name of a clip's members in its tar, without suffix."""
        return f"{self.metadata.corpus[position]}-{self.metadata.utterance_id[position]}"


def dataset_description(
    shards: Sequence[Shard], distinct: Iterable[tuple[str, str, str]] = (), index: IndexFile | None = None
) -> dict[str, Any]:
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
        **({"index": asdict(index)} if index else {}),
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
            if "index" in dataset:
                _check_types(index := IndexFile(**dataset["index"]), INDEX)
                if not _SHA256.fullmatch(index.sha256):
                    raise ValueError(f"{INDEX}'s sha256 is {index.sha256!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {PACK_AGAIN}") from error
    if version != LAYOUT_VERSION:
        raise UserError(f"{path}: layout version {version}, but this program reads {LAYOUT_VERSION}; pack the corpus again")
    return dataset


def _check_entry(shard: Shard) -> None:
    """Raise ValueError for what no packing wrote: above all a path that leads out of the dataset's folder."""
    _check_types(shard, "a shard")
    match = _PATH.fullmatch(shard.path)
    if match is None or (match["group"], match["corpus"]) != (shard.group, shard.corpus):
        raise ValueError(f"{shard.path!r} is no path of a shard of {shard.corpus!r}, group {shard.group!r}")


def _check_types(entry: Shard | IndexFile, name: str) -> None:
    for field in fields(entry):
        value = getattr(entry, field.name)
        if type(value).__name__ != field.type or (field.type != "str" and value < 0):
            raise ValueError(f"{name}'s {field.name} is {value!r}")


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


def join_dataset(root: Location, shards: Sequence[Shard]) -> pa.RecordBatch:
    """Read the indices of all shards and join them. Raises UserError where one is missing or is not what packing wrote."""

    def tables(pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
        for start in range(0, len(shards), _AHEAD):
            part = shards[start : start + _AHEAD]
            for shard, content in zip(part, pool.map(lambda each: _read_index(root, each), part), strict=True):
                yield _rows(root, shard, content)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return join_indices(tables(pool))


def _read_dataset_index(root: Location, shards: Sequence[Shard], dataset: dict[str, Any]) -> pa.RecordBatch:
    """Return the index of a dataset, mapped where it has a file for that; the sizes of its tars are checked too."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda shard: check_tar_size(root, shard), shards))
    described = IndexFile(**dataset["index"]) if "index" in dataset else None
    if described is None or described.layout != mapped_index.LAYOUT:
        return join_dataset(root, shards)
    return map_dataset(root, shards, described)


def map_dataset(root: Location, shards: Sequence[Shard], described: IndexFile) -> pa.RecordBatch:
    """Map the dataset's index file; one behind a URL is copied to this node first, for all ranks and runs here.

    Raises UserError where it is missing, damaged, or not what packing writes.
    """
    path = root / INDEX
    try:
        if isinstance(path, Url):
            name, map_copy = f"{described.sha256}.arrow", partial(mapped_index.map_content, described=described)
            batch = mapped_index.parse_index_file(open_on_node(path, name, described.bytes, map_copy))
        else:
            batch = mapped_index.map_index(path, described)
        offset, size, length = (batch.column(name).to_numpy() for name in ("offset", "size", "num_samples"))
        clips = [shard.clips for shard in shards]
        if len(batch) != sum(clips):
            raise ValueError(f"it has {len(batch)} clips, and {DATASET} {sum(clips)}")
        longest = np.repeat([shard.bytes for shard in shards], clips)
        if not ((offset > 0).all() and (size > 0).all() and (size <= longest).all() and (offset <= longest - size).all()):
            raise ValueError("its clips do not lie in the tars")
        if not (length > 0).all():
            raise ValueError("its clips have no length")
    except FileNotFoundError:
        raise UserError(f"index {path} is missing; copy it again, or {PACK_AGAIN}") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"index {path} is damaged, or not what packing writes ({error}); copy it again, or {PACK_AGAIN}"
        ) from error
    return batch


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _metadata(batches: Sequence[pa.RecordBatch], num_samples: np.ndarray) -> Metadata:
    columns: dict[str, Any] = {name: _words([batch.column(name) for batch in batches]) for name in WORDS}
    for name in TEXTS:
        texts = [batch.column(name) for batch in batches]
        columns[name] = TextColumn(texts[0] if len(texts) == 1 else pa.concat_arrays(texts))
    return Metadata(**columns, seconds=num_samples / RATE, overlap=_overlap(batches))


def _words(encoded: Sequence[pa.DictionaryArray]) -> WordColumn:
    if len(encoded) == 1:
        return WordColumn(encoded[0].dictionary, encoded[0].indices.to_numpy())
    whole = pa.concat_arrays(pa.chunked_array([each.cast(_WIDE) for each in encoded]).unify_dictionaries().chunks)
    return WordColumn(whole.dictionary, whole.indices.to_numpy())


def _overlap(batches: Sequence[pa.RecordBatch]) -> np.ndarray | None:
    """Return what shares sound over all datasets: pieces of one recording may lie in several."""
    if not any("overlap" in batch.schema.names for batch in batches):
        return None
    if len(batches) == 1:
        return np.asarray(batches[0].column("overlap").to_numpy())
    columns = [
        [
            batch.column(name).to_numpy() if "overlap" in batch.schema.names else np.full(len(batch), nothing)
            for batch in batches
        ]
        for name, nothing in (("recording", 0), ("begins", -np.inf), ("ends", -np.inf))
    ]
    return find_overlaps(*(np.concatenate(column) for column in columns))


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).to_numpy())
