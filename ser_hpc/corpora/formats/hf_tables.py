"""Read the files of a Hugging Face `datasets` folder as plain texts and sound; see `hf.py` for the layouts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.formats import column_names

LAYOUT = "state.json and data-*.arrow, or dataset_dict.json and such a folder a split, or parquet files"
PATH_COLUMNS = ("audio", "audio_path", "path", "file", "file_name", "filename", "wav")
ROWS_AT_ONCE = 32  # the sound of so many rows is in memory together


@dataclass(frozen=True, slots=True)
class HfSound:
    """The recording of a row: the bytes of a file, or only its path; as written in the dataset."""

    payload: bytes | None
    path: str


@dataclass(frozen=True, slots=True)
class HfTable:
    """One file of a dataset: its split as the dataset calls it ("" = none), and which columns matter."""

    path: Path
    split: str
    audio: str
    values: tuple[str, ...]
    classes: dict[str, list[str]]  # the names of a ClassLabel's numbers, by column

    def rows(self) -> Iterator[tuple[dict[str, str], HfSound]]:
        """Yield (text by column, sound) of every row, in order. Raises UserError where the file is damaged."""
        try:
            for batch in self._batches():
                for row in batch.to_pylist():
                    sound = row[self.audio]
                    sound = sound if isinstance(sound, dict) else {"path": sound}
                    texts = {name: _text(row[name], self.classes.get(name)) for name in self.values}
                    yield texts, HfSound(sound.get("bytes"), sound.get("path") or "")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self.path} is damaged: {error}") from error

    def _batches(self) -> Iterator[pa.RecordBatch]:
        wanted = [self.audio, *self.values]
        if self.path.suffix == ".parquet":
            yield from pq.ParquetFile(self.path).iter_batches(ROWS_AT_ONCE, columns=wanted)
            return
        for batch in pa.ipc.open_stream(pa.memory_map(str(self.path))):
            yield from (batch.select(wanted).slice(i, ROWS_AT_ONCE) for i in range(0, batch.num_rows, ROWS_AT_ONCE))


def read_hf_tables(root: Path) -> list[HfTable]:
    """Return the files of the dataset `root`, in a fixed order.

    Raises UserError where there are none, or one cannot be read or has no column of recordings.
    """
    if (root / "dataset_dict.json").is_file():
        splits = _json(root / "dataset_dict.json").get("splits") or []
        found = [(path, split) for split in map(_inside, splits) for path in _arrow_files(root / split)]
    else:
        found = [(path, "") for path in _arrow_files(root)] or [
            (path, _split_of(path.relative_to(root))) for path in _parquet(root)
        ]
    if not found:
        raise UserError(f"{root} is no dataset of Hugging Face's `datasets`; expected {LAYOUT}")
    return [_table(path, split) for path, split in found]


def _arrow_files(folder: Path) -> list[Path]:
    """Return the files that the folder's state.json lists: others, as cache-*.arrow, are left from computations."""
    if (folder / "state.json").is_file():
        entries = _json(folder / "state.json").get("_data_files") or []
        return [folder / _inside(entry.get("filename") if isinstance(entry, dict) else entry) for entry in entries]
    return sorted(folder.glob("data-*.arrow"))


def _parquet(root: Path) -> list[Path]:
    found = sorted(root.rglob("*.parquet"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def _split_of(path: Path) -> str:
    """Return the split that a parquet file's name, or the nearest folder's, begins with; "" if none does."""
    return next((split for name in (path.stem, *(p.name for p in path.parents)) if (split := column_names.split_of(name))), "")


def _inside(name: Any) -> str:
    """Check a path that a file of the dataset gives: it must stay within the folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise UserError(f"{name!r} is not the name of a file or folder inside the dataset")
    return name


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must be a JSON object")
    return value


def _table(path: Path, split: str) -> HfTable:
    try:
        parquet = path.suffix == ".parquet"
        schema = pq.read_schema(path) if parquet else pa.ipc.open_stream(pa.memory_map(str(path))).schema
        features = _features(path, schema)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a table of Arrow or parquet: {error}") from error
    kinds = {name: schema.field(name).type for name in schema.names}
    sounds = [name for name in kinds if features.get(name, {}).get("_type") == "Audio" or _holds_sound(kinds[name])]
    audio = [*sounds, *(name for name in PATH_COLUMNS if name in kinds and _is_text(kinds[name]))]
    if not audio:
        raise UserError(
            f"{path}: no column holds recordings. Its columns are {listed(schema.names, 40)}; looked for were the feature "
            f"Audio, a struct of bytes and path, and a text column {listed(PATH_COLUMNS)}"
        )
    values = tuple(name for name, kind in kinds.items() if name != audio[0] and _is_plain(kind))
    classes = {name: feature.get("names") for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    lists = {name: list(names.values()) if isinstance(names, dict) else list(names or []) for name, names in classes.items()}
    return HfTable(path, split, audio[0], values, lists)


def _features(path: Path, schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return what `datasets` wrote of each column, in the file or in dataset_info.json beside it; {} if it did not."""
    inside = (schema.metadata or {}).get(b"huggingface")
    info = json.loads(inside).get("info") or {} if inside else {}
    beside = path.parent / "dataset_info.json"
    features = info.get("features") or (_json(beside).get("features") if beside.is_file() else None) or {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _holds_sound(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes", "path"}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_plain(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_text(kind) or any(is_a(kind) for is_a in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean))


def _text(value: Any, classes: list[str] | None) -> str:
    """Return a value as text. A ClassLabel's number is its name; -1 stands for an unlabelled row."""
    if classes and isinstance(value, int):
        return str(classes[value]) if 0 <= value < len(classes) else ""
    return column_names.text_of(value)
