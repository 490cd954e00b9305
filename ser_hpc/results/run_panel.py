"""Find the shortcut panel of a run, or compute it: once for shards, labels and folds, whatever runs on them.

It is kept beside the shards (`shortcuts/`) or, where these are remote or cannot be written, beside the runs. A report is never
lost for it: where it cannot be computed, the reason is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ser_hpc.config.load import load_run_settings
from ser_hpc.core.atomic_io import UNREADABLE, json_digest, read_sealed, write_sealed
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.names import is_unknown
from ser_hpc.results import shortcut_panel
from ser_hpc.results.intervals import Interval
from ser_hpc.results.shortcut_panel import Clips, Shortcut
from ser_hpc.run.plan import fold_digest
from ser_hpc.run.run_dir import RunDir
from ser_hpc.run.shared_folder import SharedFolder
from ser_hpc.shards import shortcut_features
from ser_hpc.shards.storage import Location, parse_location

if TYPE_CHECKING:
    from ser_hpc.corpora.utterance import Metadata
    from ser_hpc.corpora.words import WordColumn

FOLDER = "shortcuts"
_PADDED_S = 0.05  # of digital zeros at a clip's end or beginning, from which on it was cut or filled
LEGACY_REASON = "the run was planned by an earlier version, which did not note which clips are in which fold"
PANEL_NUMBERS = ("num_clips", "all_clips", "num_folds", "all_folds", "damaged", "padded", "same_text", "num_tested")


@dataclass(frozen=True, slots=True)
class Panel:
    """The shortcut panel. `num_clips` and `num_folds` that it is computed on, of `all_clips` and `all_folds`; `damaged`: clips
    of these that could not be read; `padded`: those with over 50 ms of digital zeros at an end; `same_text`: test clips whose
    text is in the training part too, of `num_tested`."""

    rows: tuple[Shortcut, ...]
    num_clips: int
    all_clips: int
    num_folds: int
    all_folds: int
    damaged: int
    padded: int
    same_text: int
    num_tested: int


def find_panel(
    run: RunDir, plan: dict[str, Any], tell: Callable[[str], None], *, compute: bool
) -> tuple[Panel | None, str | None]:
    """Return the panel of a run, or None and the reason.

    `tell`: is told, in a sentence, that it will take a while; `compute`: else only one that is there already is returned.
    """
    if "run" not in plan:
        return None, LEGACY_REASON
    name = f"panel-{_panel_key(plan)}.json"
    folder = SharedFolder.of(run, first_shards(run), FOLDER)
    for path in folder.find(name):
        with suppress(*UNREADABLE):
            return _from_json(read_sealed(path)), None
    if not compute:
        return None, "it was not computed before, and is not to be now (--no-panel)"
    tell("Scoring what can be told without listening to the clips, once for these shards, labels and folds ...")
    try:
        panel = _compute(run, plan)
    except (UserError, OSError, ValueError, MemoryError) as error:
        return None, str(error).partition("\n")[0] or type(error).__name__
    folder.write(name, lambda path: write_sealed(path, _to_json(panel)))
    return panel, None


def _panel_key(plan: Mapping[str, Any]) -> str:
    """Hash all that a panel is made of: sounds, folds with speakers and true classes, and how it is computed."""
    limits = [shortcut_panel.MOST_CLIPS, shortcut_panel.MOST_HOURS, shortcut_panel.MOST_FOLDS]
    folds = [fold_digest(fold) for fold in plan["folds"]]
    made = [shortcut_features.VERSION, shortcut_panel.VERSION, *limits, plan["classes"]]
    return json_digest([made, plan["fingerprint"], folds, plan.get("speaker_aliases", {})])[:16]


def first_shards(run: RunDir) -> Location | None:
    """Return the first of the run's folders of shards, whether or not it is there."""
    with suppress(UserError, OSError):
        return next(map(parse_location, load_run_settings(run.settings).data.shards), None)
    return None


def _compute(run: RunDir, plan: dict[str, Any]) -> Panel:
    """Compute the panel. Raises UserError where the shards are not there as planned."""
    from ser_hpc.run.planned_clips import open_planned_clips  # Arrow, scikit-learn: not for a panel that is there already
    from ser_hpc.shards.shortcut_table import measure_clips

    planned = open_planned_clips(run, plan)
    index, metadata, folds = planned.index, planned.index.metadata, planned.folds.folds
    used, tested = np.zeros((2, len(metadata)), dtype=bool)
    for fold in folds:
        used[fold.train.positions] = used[fold.test.positions] = tested[fold.test.positions] = True
    part = shortcut_panel.choose_part(np.flatnonzero(used), np.flatnonzero(tested), metadata.seconds, len(folds))
    places = [SharedFolder.of(run, root, FOLDER) for root in index.roots]
    features = measure_clips(index, part.rows, places.__getitem__)
    clips = Clips(
        planned.targets[part.rows].astype(np.int64),
        _speakers(metadata, part.rows, plan.get("speaker_aliases", {})),
        _number(_of_corpus(metadata, metadata.text_id, part.rows), lambda name: not name.partition("/")[2]),
        features,
    )

    def rows(positions: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(part.rows, positions))

    pairs = [(rows(folds[k].train.positions), rows(folds[k].test.positions)) for k in part.folds]
    pairs = [(train, test) for train, test in pairs if len(train) and len(test)]
    if not pairs:
        raise UserError("no fold has clips to learn from and clips to test among those that were looked at")
    zeros = features[:, shortcut_features.COLUMNS["digital zeros"]]
    return Panel(
        rows=shortcut_panel.compute_panel(clips, pairs, len(plan["classes"])),
        num_clips=len(part.rows),
        all_clips=int(used.sum()),
        num_folds=len(part.folds),
        all_folds=len(folds),
        damaged=int(np.isnan(zeros).any(1).sum()),
        padded=int((zeros[:, :2] > _PADDED_S).any(1).sum()),
        same_text=sum(int(_in_both(clips.texts, train, test).sum()) for train, test in pairs),
        num_tested=sum(len(test) for _, test in pairs),
    )


def _in_both(texts: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    found: np.ndarray = (texts[test] >= 0) & np.isin(texts[test], texts[train])
    return found


def _speakers(metadata: Metadata, rows: np.ndarray, same: Mapping[str, str | None]) -> np.ndarray:
    """Number the speakers, as persons (folds.speaker_aliases); those that are unknown, corpus by corpus, below zero."""
    names = _of_corpus(metadata, metadata.speaker, rows).rename(lambda name: same.get(name) or name)
    return _number(names, lambda name: is_unknown(name.partition("/")[2]))


def _of_corpus(metadata: Metadata, column: WordColumn, rows: np.ndarray) -> WordColumn:
    return type(column).join(metadata.corpus.take(rows), column.take(rows))


def _number(words: WordColumn, is_none: Callable[[str], bool]) -> np.ndarray:
    """Number words; those that stand for none are below zero."""
    names, numbers = words.number()
    none = np.array([is_none(name) for name in names], dtype=bool)
    found: np.ndarray = np.where(none[numbers], -1 - numbers, numbers)
    return found


def _to_json(panel: Panel) -> dict[str, Any]:
    rows = [
        {
            "name": row.name,
            "uar": row.uar,
            "control": row.control,
            "bounds": row.interval.bounds,
            "reason": row.interval.reason,
            "unit": row.interval.unit,
            "units": row.interval.num_units,
            "speakers": row.interval.num_speakers,
        }
        for row in panel.rows
    ]
    numbers = {name: getattr(panel, name) for name in PANEL_NUMBERS}
    return {"rows": rows, **numbers}


def _from_json(content: Mapping[str, Any]) -> Panel:
    """Read a panel. Raises KeyError, TypeError or ValueError where it is not what was written."""

    def row(of: Mapping[str, Any]) -> Shortcut:
        bounds = None if of["bounds"] is None else (float(of["bounds"][0]), float(of["bounds"][1]))
        interval = Interval(bounds, of["reason"], int(of["speakers"]), str(of["unit"]), int(of["units"]))
        uar, control = (None if of[name] is None else float(of[name]) for name in ("uar", "control"))
        return Shortcut(str(of["name"]), uar, interval, control)

    return Panel(tuple(row(of) for of in content["rows"]), **{name: int(content[name]) for name in PANEL_NUMBERS})
