"""Keep how often the same test clips were scored: who tries many configurations on them chooses by the test part in the end.

    FOLDER/<16 hex of the test clips>/<16 hex of the run's identity>.json

One file a configuration, written aside and renamed: reports of several machines need no lock, and a report that is made again
changes nothing. Nothing here is ever deleted. More seeds of a run are no new configuration: its scores are appended to.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ser_hpc.core.atomic_io import UNREADABLE, json_digest, read_json, write_json
from ser_hpc.core.errors import counted
from ser_hpc.results import markdown
from ser_hpc.run.shared_folder import SharedFolder

FOLDER = "scored"
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class ScoreLedger:
    """All configurations that were reported on these test clips, this one among them. `number`: which this one is, counted from
    1 by the time of its first report; None where it is not entered. `place`: "shards" or "runs", None: nothing could be
    written."""

    number: int | None
    uars: tuple[float, ...]
    place: str | None

    @property
    def best(self) -> float:
        return max(self.uars)

    @property
    def median(self) -> float:
        return median(self.uars)

    def sentence(self) -> str:
        """Say how often the clips were scored, and how well."""
        where = {
            "shards": "",
            "runs": " Counted are those of this folder of runs: nothing can be written beside the shards.",
            None: " This one could not be entered: neither beside the shards nor beside the runs can anything be written.",
        }[self.place]
        if self.number is None:
            return f"{counted(len(self.uars), 'configuration')} scored on these test clips so far; {self._scores()}." + where
        if len(self.uars) == 1:
            return "The first configuration that is scored on these test clips." + where
        which = f"of {len(self.uars)} configurations" if self.number < len(self.uars) else "configuration"
        return f"The {ordinal(self.number)} {which} scored on these test clips; {self._scores()}." + where

    def _scores(self) -> str:
        best, middle = (markdown.format_score(value) for value in (self.best, self.median))
        return f"pooled UAR of all so far: best {best}, median {middle}"


def clips_key(plan: Mapping[str, Any]) -> str | None:
    """Hash the test clips of all folds, with their speakers and true classes; None for a plan of before there were digests."""
    digests = [fold["test"].get("digest") for fold in plan["folds"]]
    if None in digests or "run" not in plan:
        return None
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()[:_DIGITS]


def enter_score(folder: SharedFolder, plan: Mapping[str, Any], uar: float | None) -> ScoreLedger | None:
    """Enter the pooled UAR of a run, and return what is known of all; None: nothing, or no run that can be told from others.

    `uar`: None for a run that is not complete, which is not entered.
    """
    if (key := clips_key(plan)) is None:
        return None
    own, entries = plan["run"][:_DIGITS], _read_entries(folder, key)
    place: str | None = "shards" if folder.beside_shards else "runs"
    if uar is not None:
        entries[own] = _with_score(entries.get(own), plan, uar)
        place = _write_entry(folder, f"{key}/{own}.json", entries[own])
    if not entries:
        return None
    order = sorted(entries, key=lambda name: (entries[name]["first"], name))
    uars = tuple(float(entries[name]["scores"][-1]["uar"]) for name in order)
    return ScoreLedger(order.index(own) + 1 if own in entries else None, uars, place)


def _with_score(entry: dict[str, Any] | None, plan: Mapping[str, Any], uar: float) -> dict[str, Any]:
    """Return the entry of a run with this score as its last; None: it has no entry yet."""
    entry = entry or {"name": plan["name"], "run": plan["run"], "first": round(time.time(), 3), "scores": []}
    score = {"seeds": len(plan["seeds"]), "uar": round(uar, 9)}
    return entry if entry["scores"][-1:] == [score] else entry | {"scores": [*entry["scores"], score]}


def _write_entry(folder: SharedFolder, name: str, entry: dict[str, Any]) -> str | None:
    """Write an entry, unless it is there already; return where it is, None where nothing could be written."""
    path: Path | None = folder.places[0] / name
    if _read_entry(folder.places[0] / name) != entry:
        path = folder.write(name, lambda path: write_json(path, entry))
    if path is None:
        return None
    return "shards" if path.parents[1] == folder.beside_shards else "runs"


def _read_entries(folder: SharedFolder, key: str) -> dict[str, dict[str, Any]]:
    """Read the entries of both places; what is no entry is passed over, as anybody may write there."""
    found: dict[str, dict[str, Any]] = {}
    for place in reversed(folder.places):  # beside the shards counts where an entry is in both
        with suppress(OSError):
            for path in sorted((place / key).glob("*.json")):
                if (entry := _read_entry(path)) is not None:
                    found[path.stem] = entry
    return found


def _read_entry(path: Path) -> dict[str, Any] | None:
    with suppress(*UNREADABLE):
        entry = read_json(path)
        json_digest(entry)  # NaN and infinity could not be written again
        scores = [float(score["uar"]) for score in entry["scores"]]
        if str(entry["run"])[:_DIGITS] == path.stem and scores and all(0 <= uar <= 1 for uar in scores):
            return {**entry, "first": float(entry["first"])}
    return None


def ordinal(number: int) -> str:
    """Format 1st, 2nd, 3rd, 11th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"
