"""Read and write OUT/plan.json: the shard of each clip, so that clips that are added later change no existing shard.

Written before the first shard. Every part of an array reads it, plans the same, and writes the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.shards.assignment import LAYOUT_VERSION, NOTHING, Grouping, SavedAssignment

PLAN = "plan.json"
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")  # corpus and group become a path


def read_assignment(out: Path) -> SavedAssignment:
    """Return the plan of the last packing into `out`; an empty one where there was none, or one of another layout.

    Raises UserError if the file is damaged.
    """
    path = out / PLAN
    if not path.exists():
        return NOTHING
    try:
        saved = read_json(path)
        if saved["version"] != LAYOUT_VERSION:
            return NOTHING
        grouped_by = dict(saved["grouped_by"])
        shards = tuple(_shard(**shard) for shard in saved["shards"])
        if not set(grouped_by.values()) <= set(get_args(Grouping)):
            raise ValueError(f"grouped_by is {grouped_by}")
        return SavedAssignment(grouped_by, shards)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Bring back a copy of it, or delete it: then clips are dealt to shards anew, and "
            "shards that this changes are made again"
        ) from error


def write_assignment(out: Path, plan: SavedAssignment) -> None:
    """Write the plan into `out`, unless the same one is there. Raises UserError if the file there is damaged."""
    if (out / PLAN).exists() and read_assignment(out) == plan:
        return
    shards = list(_rows(plan))
    write_json(out / PLAN, {"version": LAYOUT_VERSION, "grouped_by": dict(plan.grouped_by), "shards": shards})


def _rows(plan: SavedAssignment) -> Iterator[dict[str, object]]:
    for corpus, group, number, keys in plan.shards:
        yield {"corpus": corpus, "group": group, "number": number, "keys": list(keys)}


def _shard(corpus: str, group: str, number: int, keys: list[str]) -> tuple[str, str, int, tuple[str, ...]]:
    if not (_WORD.fullmatch(corpus) and _WORD.fullmatch(group) and type(number) is int and 0 <= number < 10**6):
        raise ValueError(f"shard {corpus!r}, {group!r}, {number!r}")
    return corpus, group, number, tuple(keys)
