"""Write predictions as they come: a table for people, JSON lines and CSV for programs, Parquet at the end."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from ser_hpc.core.errors import UserError
from ser_hpc.inference.results import DIGITS, ClipPrediction

FORMATS = ("table", "jsonl", "csv", "parquet")
_SUFFIXES = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet", ".txt": "table"}
_AT_ONCE = 10_000  # rows of Parquet


class Writer(Protocol):
    """A writer of predictions; `close` writes what is still held."""

    def write(self, prediction: ClipPrediction) -> None: ...

    def close(self) -> None: ...


def choose_format(named: str | None, out: Path | None) -> str:
    """Return the format that was named, or that the file's name stands for; of the terminal a table. Raises UserError."""
    if named is not None:
        if named == "parquet" and out is None:
            raise UserError("--format parquet is for a file: add --out FILE.parquet")
        return named
    if out is None:
        return "table"
    if (suffix := out.suffix.lower()) not in _SUFFIXES:
        raise UserError(f"--out {out}: its name ends in none of {', '.join(_SUFFIXES)}; name the format with --format")
    return _SUFFIXES[suffix]


def make_writer(kind: str, file: IO[str] | Path, classes: Sequence[str], unsure: float | None) -> Writer:
    """Make a writer to an open text file; of Parquet to a path. `unsure`: confidence below which that is said."""
    if kind == "parquet":
        assert isinstance(file, Path)
        return ParquetWriter(file, unsure)
    assert not isinstance(file, Path)
    if kind == "jsonl":
        return JsonWriter(file.write, unsure)
    return CsvWriter(file, unsure) if kind == "csv" else TableWriter(file.write, classes, unsure)


def flat(prediction: ClipPrediction, unsure: float | None) -> dict[str, Any]:
    """Return a prediction as one row: probabilities in columns `p_CLASS`, other tasks' in `TASK_NAME`."""
    row = prediction.as_json(unsure)
    probabilities, tasks = row.pop("probabilities"), row.pop("tasks", {})
    row |= {f"p_{name}": p for name, p in probabilities.items()}
    for task, values in tasks.items():
        row |= {f"{task}_{name}": value for name, value in values.items()} if isinstance(values, dict) else {task: values}
    return row


class JsonWriter:
    """One JSON object a line."""

    def __init__(self, write: Callable[[str], object], unsure: float | None) -> None:
        self._write, self._unsure = write, unsure

    def write(self, prediction: ClipPrediction) -> None:
        self._write(json.dumps(prediction.as_json(self._unsure), ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        """Do nothing."""


class CsvWriter:
    """A header, then one row a prediction."""

    def __init__(self, file: IO[str], unsure: float | None) -> None:
        self._file, self._unsure = file, unsure
        self._rows: csv.DictWriter[str] | None = None

    def write(self, prediction: ClipPrediction) -> None:
        row = flat(prediction, self._unsure)
        if self._rows is None:
            self._rows = csv.DictWriter(self._file, list(row), lineterminator="\n")
            self._rows.writeheader()
        self._rows.writerow(row)

    def close(self) -> None:
        """Do nothing."""


class ParquetWriter:
    """A Parquet file with the columns of the CSV."""

    def __init__(self, path: Path, unsure: float | None) -> None:
        self._path, self._unsure = path, unsure
        self._rows: list[dict[str, Any]] = []
        self._file: Any = None

    def write(self, prediction: ClipPrediction) -> None:
        self._rows.append(flat(prediction, self._unsure))
        if len(self._rows) >= _AT_ONCE:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.Table.from_pylist(self._rows)
        if self._file is None:
            self._file = parquet.ParquetWriter(self._path, table.schema)
        if self._rows:
            self._file.write_table(table)
        self._rows = []


class TableWriter:
    """Lines for people: class, confidence, the next likely class, the stretch in seconds, the recording."""

    def __init__(self, write: Callable[[str], object], classes: Sequence[str], unsure: float | None) -> None:
        self._write, self._unsure = write, unsure
        self._width = max(*map(len, classes), len("label"))
        self._begun = False

    def write(self, prediction: ClipPrediction) -> None:
        w = self._width
        if not self._begun:
            other = "  others" if prediction.tasks else ""
            self._write(f"{'label':<{w}}  sure  {'or else':<{w}}  {'':4}  {'seconds':>15}  recording{other}\n")
            self._begun = True
        ranked = sorted(prediction.probabilities, key=lambda name: -prediction.probabilities[name])
        second = ranked[1] if len(ranked) > 1 else ""
        doubt = "  unsure" if self._unsure is not None and prediction.confidence < self._unsure else ""
        likely, next_likely = f"{prediction.confidence:4.2f}", f"{prediction.probabilities.get(second, 0):4.2f}"
        stretch = f"{prediction.start_s:.2f} - {prediction.end_s:.2f}"
        more = f"{prediction.audio}{doubt}{self._others(prediction)}"
        self._write(f"{prediction.label:<{w}}  {likely}  {second:<{w}}  {next_likely}  {stretch:>15}  {more}\n")

    def _others(self, prediction: ClipPrediction) -> str:
        told = []
        for task, values in prediction.tasks.items():
            if not isinstance(values, dict) or not values:
                told.append(f"{task} {values}")
            elif abs(sum(values.values()) - 1) < 1e-3 and min(values.values()) >= 0:
                best = max(values, key=values.__getitem__)
                told.append(f"{task} {best} {values[best]:.2f}")
            else:
                told.append(f"{task} " + " ".join(f"{name} {value:.{min(2, DIGITS)}f}" for name, value in values.items()))
        return "  " + "; ".join(told) if told else ""

    def close(self) -> None:
        """Do nothing."""
