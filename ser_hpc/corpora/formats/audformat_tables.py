"""Read the header and the tables of an audformat database as plain texts; `audformat.py` interprets them."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ser_hpc.core.errors import UserError
from ser_hpc.corpora.formats import column_names

LAYOUT = "db.yaml, db.<table>.csv or .parquet, and the media files"
TIMEDELTA = re.compile(r"(?:(\d+) days? )?(\d+):(\d+):(\d+(?:\.\d+)?)")
WORDS = ("emotion", "label", "name", "category")  # properties of a scheme's label that may hold its word
TextFields = dict[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """A media file, or the part of it between two times in seconds (None: from its beginning, to its end)."""

    file: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class AudformatTable:
    """The rows of a table, each with its piece and its texts by column; `fields`: the column of each field of an utterance."""

    name: str
    split: str  # train, dev, test or ""
    columns: tuple[str, ...]
    fields: Mapping[str, str]
    rows: tuple[tuple[Piece, TextFields], ...]


@dataclass(frozen=True, slots=True)
class Database:
    """A database as texts. `speakers`: properties of each speaker, from the header or a misc table."""

    name: str
    language: str  # "" if several
    tables: tuple[AudformatTable, ...]
    speakers: Mapping[str, TextFields]


def read_database(root: Path) -> Database:
    """Read a database. Raises UserError where `root` holds no such header, or a table of it cannot be read."""
    header = _header(root / "db.yaml")
    schemes, splits = _mapping(header.get("schemes")), _mapping(header.get("splits"))
    tables: list[AudformatTable] = []
    speakers: dict[str, TextFields] = {}
    for name, spec in header["tables"].items():
        table = _table(root, str(name), _mapping(spec), schemes, splits)
        tables.append(table)
        if column := table.fields.get("speaker"):
            scheme = _mapping(_mapping(_mapping(spec).get("columns")).get(column)).get("scheme_id", "")
            speakers |= _speakers(root, _mapping(schemes.get(scheme)).get("labels"))
    languages = {column_names.language_of(str(language)) for language in header.get("languages") or []}
    return Database(str(header["name"]), languages.pop() if len(languages) == 1 else "", tuple(tables), speakers)


def _speakers(root: Path, labels: Any) -> dict[str, TextFields]:
    """Return each speaker's properties from the labels of a scheme, in the header or in the misc table that it names."""
    if isinstance(labels, str):
        rows = [list(row.items()) for row in _rows(root, labels)]
        return {index[1]: dict(properties) for index, *properties in rows}
    known = {column_names.text_of(label): _mapping(what) for label, what in _mapping(labels).items()}
    return {label: {str(name): column_names.text_of(value) for name, value in what.items()} for label, what in known.items()}


def _header(path: Path) -> dict[str, Any]:
    try:
        header = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as the header of an audformat database: {error}; expected {LAYOUT}") from error
    if not isinstance(header, dict) or not header.get("name") or not isinstance(header.get("tables"), dict):
        raise UserError(f"{path} is no header of an audformat database: it must be a mapping with name and tables")
    return header


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _table(root: Path, name: str, spec: dict[str, Any], schemes: dict[str, Any], splits: dict[str, Any]) -> AudformatTable:
    found = {str(column): _mapping(scheme) for column, scheme in _mapping(spec.get("columns")).items()}
    split = str(spec.get("split_id") or "")
    meanings = {
        column: _label_words(_mapping(schemes.get(scheme.get("scheme_id", ""))).get("labels"))
        for column, scheme in found.items()
    }
    rows = [
        (_piece(root, name, row), {column: meanings[column].get(row.get(column, ""), row.get(column, "")) for column in found})
        for row in _rows(root, name)
    ]
    kind = str(_mapping(splits.get(split)).get("type") or split)
    return AudformatTable(name, column_names.split_of(kind), tuple(found), _fields(found), tuple(rows))


def _label_words(labels: Any) -> TextFields:
    """Return the word for each label of a scheme that is not one itself: {1: anger}, or {W: {emotion: anger}}."""
    if not isinstance(labels, dict):
        return {}
    meanings: TextFields = {}
    for label, what in labels.items():
        named = next((what[name] for name in WORDS if what.get(name)), None) if isinstance(what, dict) else what
        meanings |= {column_names.text_of(label): column_names.text_of(named)} if isinstance(named, str) else {}
    return meanings


def _fields(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the column of each field: by its name, or else the only one, or gold standard, of a scheme with that name."""
    fields = column_names.choose_columns(found)
    for field, names in column_names.NAMES.items():
        of_scheme = [
            column for column, what in found.items() if column_names.normalized(str(what.get("scheme_id", ""))) in names
        ]
        gold = [column for column in of_scheme if "gold" in str(found[column].get("rater_id", ""))]
        only = next((some[0] for some in (of_scheme, gold) if len(some) == 1), None)
        if field not in fields and only is not None and only not in fields.values():
            fields[field] = only
    return fields


def _piece(root: Path, table: str, row: TextFields) -> Piece:
    """Parse the piece of a row. Raises UserError where it names no file, or has a malformed time."""
    if not row.get("file"):
        raise UserError(f"{root}: table {table}: a row without file")
    start, end = (_seconds(root, table, row.get(name, "")) for name in ("start", "end"))
    return Piece(row["file"], start if start or end is not None else None, end)


def _seconds(root: Path, table: str, text: str) -> float | None:
    """Return the seconds of a time as pandas writes it, `0 days 00:00:01.500000`, or as a number; None for none."""
    if text in ("", "NaT"):
        return None
    if match := TIMEDELTA.fullmatch(text):
        return int(match[1] or 0) * 86400 + int(match[2]) * 3600 + int(match[3]) * 60 + float(match[4])
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    raise UserError(f"{root}: table {table}: {text!r} is no time; expected one such as 0 days 00:00:01.5")


def _rows(root: Path, name: str) -> list[TextFields]:
    """Return the rows of a table as texts by column; times of a parquet file in seconds."""
    base = root / f"db.{name}"
    text, parquet = base.with_name(f"{base.name}.csv"), base.with_name(f"{base.name}.parquet")
    try:
        if text.is_file():
            with text.open(encoding="utf-8-sig", newline="") as file:
                return [{key: (value or "").strip() for key, value in row.items() if key} for row in csv.DictReader(file)]
        if parquet.is_file():
            return [
                {key: column_names.text_of(value) for key, value in row.items()} for row in _in_seconds(pq.read_table(parquet))
            ]
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"the table {name} of {root} cannot be read: {error}") from error
    pickled = base.with_name(f"{base.name}.pkl").is_file()
    hint = "; pickles are never read: save it again with Database.save(root, storage_format='csv')" if pickled else ""
    raise UserError(f"{root} has no {text.name} or {parquet.name}, though db.yaml lists the table{hint}")


def _in_seconds(table: pa.Table) -> list[dict[str, Any]]:
    for i, field in enumerate(table.schema):
        if pa.types.is_duration(field.type):
            whole = table.column(i).cast(pa.duration("ns")).cast(pa.int64()).to_pylist()
            seconds = [None if value is None else f"{value / 1e9:.9f}" for value in whole]
            table = table.set_column(i, field.name, pa.array(seconds, pa.string()))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
