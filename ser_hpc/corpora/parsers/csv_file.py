"""Find and read a CSV file that belongs to a corpus, wherever a copy keeps it. For the parsers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ser_hpc.core.errors import UserError, listed


def find_nearest(root: Path, *names: str) -> Path | None:
    """Return the file below `root` with one of these names, in any case of letters; of several the one nearest to `root`."""
    wanted = {name.lower() for name in names}
    found = [path for path in root.rglob("*") if path.name.lower() in wanted]
    return min(found, key=lambda path: (len(path.parts), str(path)), default=None)


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV file with a header, each value stripped. Raises UserError where it cannot be read or lacks a column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: no column {listed(missing)}; its columns are {listed(reader.fieldnames or (), 20)}")
            return [{name: row[name].strip() for name in columns} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a UTF-8 table: {error}") from error
