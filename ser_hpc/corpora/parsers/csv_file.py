"""Find and read a CSV file that belongs to a corpus, wherever a copy keeps it; write votes as one text. For the parsers."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ser_hpc.core.errors import UserError, listed

_COUNT = re.compile(r"[0-9]+(\.0*)?")  # 3.0 is what a table saved anew, with an empty cell in the column, makes of 3


def find_nearest(root: Path, *names: str) -> Path | None:
    """Return the file below `root` with one of these names, in any case of letters; of several the one nearest to `root`."""
    wanted = {name.lower() for name in names}
    found = [path for path in root.rglob("*") if path.name.lower() in wanted]
    return min(found, key=lambda path: (len(path.parts), str(path)), default=None)


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a CSV file with a header, each value stripped; a column that is `optional` and not there is empty. Raises UserError
    where it cannot be read or lacks a column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                lacks = listed([name or "without a name" for name in missing])
                raise UserError(f"{path}: no column {lacks}; its columns are {listed(reader.fieldnames or (), 20)}")
            return [{name: (row.get(name) or "").strip() for name in (*columns, *optional)} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a UTF-8 table: {error}") from error


def votes(counts: Mapping[str, str | int], table: Path | None) -> str:
    """Write annotators' votes as a distribution task reads them: `anger=2 neutral=7`. Raises UserError for what is no count."""
    wrong = [f"{name} {count!r}" for name, count in counts.items() if not _COUNT.fullmatch(str(count or 0))]
    if wrong:
        raise UserError(f"{table}: votes must be whole numbers; not {listed(wrong)}")
    whole = {name: int(float(count or 0)) for name, count in counts.items()}
    return " ".join(f"{name}={count}" for name, count in whole.items() if count)
