"""List what is given to predict: sound files, folders, tables, packed shards, arrays; each is read block by block.

A recording yields int16 samples at 16 kHz, made as packing makes them, in memory that does not grow with its length.
"""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from ser_hpc.core.errors import UserError, listed
from ser_hpc.core.home import expand_home
from ser_hpc.corpora.parse_result import find_recordings
from ser_hpc.shards import RATE, audio
from ser_hpc.shards.audio import BadClipError
from ser_hpc.shards.index import DATASET, ShardIndex
from ser_hpc.shards.read import CorruptClipError, ShardReader
from ser_hpc.shards.storage import Url, parse_location

_TABLES = (".csv", ".jsonl")
_AUDIO_COLUMNS = ("audio", "path", "file")
_BLOCK = 1 << 16


class Recording(Protocol):
    """A recording, or a piece of one that begins at `start_s` of it. `name`: as it is told in results."""

    @property
    def name(self) -> str: ...

    @property
    def start_s(self) -> float: ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield its samples, int16 at 16 kHz, block by block. Raises BadClipError."""
        ...


@dataclass(frozen=True, slots=True)
class FileRecording:
    """A sound file, or the piece of it from `first_s` to `last_s`."""

    name: str
    path: Path
    first_s: float | None = None
    last_s: float | None = None

    @property
    def start_s(self) -> float:
        return self.first_s or 0.0

    def blocks(self) -> Iterator[np.ndarray]:
        try:
            kind = self.path.stat().st_mode
        except FileNotFoundError:
            raise BadClipError("does not exist") from None
        except OSError as error:
            raise BadClipError(f"cannot be read: {error.strerror or error}") from None
        except ValueError:
            raise BadClipError("cannot be the name of a file") from None
        if not stat.S_ISREG(kind):  # to open a pipe would be to wait for whoever writes into it
            what = "folder" if stat.S_ISDIR(kind) else "pipe or device"
            raise BadClipError(f"is a {what}, not a file")
        yield from audio.stream(self.path, self.first_s, self.last_s)


@dataclass(frozen=True, slots=True)
class ArrayRecording:
    """Samples (n,) in memory: int16, or floats in [-1, 1], at `rate` Hz."""

    name: str
    samples: Any
    rate: int = RATE

    start_s = 0.0

    def blocks(self) -> Iterator[np.ndarray]:
        samples = np.asarray(self.samples)
        if samples.ndim != 1:
            raise BadClipError(f"has the shape {samples.shape}: give one channel, (samples,)")
        if samples.dtype != np.int16:
            if not np.issubdtype(samples.dtype, np.floating):
                raise BadClipError(f"is of {samples.dtype}: give int16, or floats in [-1, 1]")
            if not np.isfinite(samples).all():
                raise BadClipError("holds NaN or infinite samples")
            samples = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
        if self.rate != RATE:
            resampled = soxr.resample(samples.astype(np.float32), self.rate, RATE, quality="HQ")
            samples = np.rint(resampled).clip(-32768, 32767).astype(np.int16)
        for begin in range(0, len(samples), _BLOCK):
            yield samples[begin : begin + _BLOCK]


@dataclass(frozen=True, slots=True)
class PackedRecording:
    """A clip of packed shards, named by its key."""

    reader: ShardReader
    position: int

    start_s = 0.0

    @property
    def name(self) -> str:
        return str(self.reader.index.key(self.position))

    def blocks(self) -> Iterator[np.ndarray]:
        try:
            yield self.reader.read(self.position)
        except CorruptClipError as error:
            raise BadClipError(f"is damaged: {error}") from error


def find(names: Iterable[str]) -> Iterator[Recording]:
    """List the recordings that arguments name: a file, a folder with files in it at any depth, packed shards (a folder or a
    URL), a table (.csv or .jsonl) with a column `audio`, and `start_s` and `end_s` for pieces.

    Raises UserError for a folder without recordings, a table without that column, and shards that cannot be read.
    """
    for name in names:
        location = parse_location(name)
        if isinstance(location, Url):
            yield from _packed(name)
        elif location.is_dir():
            yield from _packed(name) if (location / DATASET).exists() else _in_folder(location)
        elif location.suffix.lower() in _TABLES:
            yield from _in_table(location)
        else:
            yield FileRecording(name, location)


def _packed(name: str) -> Iterator[Recording]:
    index = ShardIndex.load(parse_location(name))
    with ShardReader(index) as reader:
        for position in range(len(index.metadata)):
            yield PackedRecording(reader, position)


def _in_folder(folder: Path) -> Iterator[Recording]:
    found = find_recordings(folder)
    if not found:
        raise UserError(f"{folder} holds no recording: no file in it has the name of a sound file, such as .wav, .flac or .mp3")
    yield from (FileRecording(str(path), path) for path in found)


def _in_table(table: Path) -> Iterator[Recording]:
    """Yield a table's rows; paths are absolute, or relative to the table."""
    try:
        rows = list(_rows(table))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{table} cannot be read as a table of recordings: {reason}") from error
    for number, row in rows:
        column = next((name for name in _AUDIO_COLUMNS if row.get(name)), None)
        if column is None:
            has = listed(sorted(str(name) for name in row)) or "none"
            raise UserError(f"{table}:{number} names no recording: it needs a column `audio`; its columns are {has}")
        start, end = (_seconds(table, number, row, name) for name in ("start_s", "end_s"))
        yield FileRecording(str(row[column]), table.parent / expand_home(str(row[column])), start, end)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if table.suffix.lower() == ".jsonl":
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        objects = [(number, json.loads(line)) for number, line in enumerate(lines, start=1) if line.strip()]
        if wrong := [number for number, row in objects if not isinstance(row, dict)]:
            raise ValueError(f"line {wrong[0]} is no JSON object")
        yield from objects
        return
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        yield from ((reader.line_num, row) for row in reader)


def _seconds(table: Path, number: int, row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value in (None, ""):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{table}:{number}: {name} is {value!r}, no number of seconds")
    return seconds


def of_python(given: Any, rate: int = RATE) -> Iterator[Recording]:
    """List what a Python caller gives: a path (as `find` takes them), an array (of `rate` Hz), or any number of these."""
    many: Iterable[Any] = [given] if isinstance(given, str | Path) or hasattr(given, "dtype") else given
    for number, each in enumerate(many):
        if isinstance(each, str | Path):
            yield from find([str(each)])
        elif hasattr(each, "dtype") or (isinstance(each, Sequence) and each and isinstance(each[0], float)):
            samples = each.detach().cpu().numpy() if hasattr(each, "detach") else each
            yield ArrayRecording(f"array {number}", samples, rate)
        else:
            raise UserError(f"{type(each).__name__} is nothing to predict: give paths, or arrays of samples")
