"""Read the test predictions of systems that are to be compared: finished runs, and other tools' tables of the same clips.

A table is a CSV with a head: `utterance` (its id, or `corpus/id`), `truth`, `predicted`, and where there are several seeds,
`seed`. Other columns are passed over. Who speaks, and which fold tests a clip, comes from the run that it is compared with.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_hpc.core.errors import UserError, listed
from ser_hpc.results.cross_validation import confusion_of, cross_validate, is_transductive
from ser_hpc.results.report_summary import incomplete_sentence
from ser_hpc.results.speaker_counts import SpeakerCounts, count_by_speaker
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.tasks.metrics import uar

COLUMNS = ("utterance", "truth", "predicted")
_LONGEST = 10_000_000  # lines of a table
_SHOWN = 60  # letters of a cell
_SEED_DIGITS = 18


@dataclass(frozen=True, slots=True)
class System:
    """What one system predicted. `plan`: its run's, or that of the run whose clips its table is about; `tested`: by trial."""

    name: str
    plan: dict[str, Any]
    tested: Mapping[Trial, Sequence[Prediction]]

    @property
    def classes(self) -> list[str]:
        return list(self.plan["classes"])

    def count_speakers(self) -> SpeakerCounts:
        """Count by speaker. Raises UserError where a speaker is unknown."""
        counts = count_by_speaker(self.tested, self.classes, self.plan.get("speaker_aliases", {}))
        if counts is None:
            raise UserError(
                f"{self.name}: some test clips are of unknown speakers, and speakers are the sample of a comparison"
            )
        return counts

    def uar_by_trial(self) -> dict[Trial, float]:
        """Return each trial's UAR."""
        return {trial: float(uar(confusion_of(predictions, self.classes))) for trial, predictions in self.tested.items()}


def read_systems(paths: Sequence[Path]) -> list[System]:
    """Read runs and tables, at least one of them a run. Raises UserError where they did not test the same clips on the same
    folds, or a run is not finished."""
    if same := [str(path) for path in paths if paths.count(path) > 1]:
        raise UserError(f"{same[0]} is given twice: compare it with another system")
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; give run directories, or CSV files with the columns {listed(COLUMNS)}")
    runs = {path: _read_run(path) for path in paths if path.is_dir()}
    if not runs:
        raise UserError("none of these is a run directory: one is needed, for the speakers and the folds of the clips")
    first = next(iter(runs.values()))
    for other in [*runs.values()][1:]:
        refuse_other_folds(first, other)
    heard = [path.is_dir() and is_transductive(RunDir(path)) for path in paths]
    names = [f"{name} (transductive)" if of else name for name, of in zip(_short_names(paths), heard, strict=True)]
    found = [runs[path] if path in runs else _read_table(path, first) for path in paths]
    return [System(name, system.plan, system.tested) for name, system in zip(names, found, strict=True)]


def count_systems(systems: Sequence[System]) -> list[SpeakerCounts]:
    """Count each system by speaker. Raises UserError where one is unknown, or two runs take other names for one person."""
    counts = [system.count_speakers() for system in systems]
    for system, of in zip(systems, counts, strict=True):
        if of.speakers != counts[0].speakers:
            names = listed(sorted({*of.speakers} ^ {*counts[0].speakers}))
            raise UserError(
                f"{systems[0].name} and {system.name} count other speakers, though of the same clips: {names}; launch one of "
                "them again with the other's folds.speaker_aliases"
            )
    return counts


def _read_run(path: Path) -> System:
    cv = cross_validate(RunDir(path), attempts=())  # by whom and with what they were made is not compared
    if cv.missing:
        raise UserError(f"{path}: {incomplete_sentence(cv)} Finish it first: {listed([m.trial for m in cv.missing])}")
    return System(str(path), cv.plan, {t.trial: t.test for t in cv.trials})


def refuse_other_folds(one: System, other: System) -> None:
    """Raise UserError unless both runs have the same classes, and the same clips in each part of each fold."""
    if one.classes != other.classes:
        raise UserError(
            f"{one.name} tells {listed(one.classes, 30)} apart, {other.name} {listed(other.classes, 30)}: their scores are of "
            "other tasks"
        )
    ours, theirs = (
        {(f["fold"], part): f[part].get("digest") for f in s.plan["folds"] for part in ("train", "dev", "test")}
        for s in (one, other)
    )
    if old := [s.name for s, digests in ((one, ours), (other, theirs)) if None in digests.values()]:
        raise UserError(
            f"{listed(old)}: planned by an earlier version, which did not note what identifies a fold's clips: such a run can "
            "be compared with tables of predictions, and not with another run"
        )
    if different := sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)):
        names = listed([f"{part} of fold {fold}" for fold, part in different], 6)
        raise UserError(
            f"{one.name} and {other.name} have other folds: {names} are not the same clips; launch one of them again with the "
            "other's data.shards, data.labels and folds"
        )


def _read_table(path: Path, run: System) -> System:
    """Read predictions of another tool for exactly the run's test clips. Raises UserError naming the row that is wrong."""
    clips = _clips_by_name(run)
    tested: dict[Trial, list[Prediction]] = {}
    seen: set[tuple[int, str]] = set()
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        if (name := row["utterance"]) not in clips:
            raise UserError(f"{where}: {_shown(name)} is no test clip of {run.name}")
        if (known := clips[name]) is None:
            raise UserError(f"{where}: several corpora have a clip {name}; write CORPUS/{name}, with the name of the one meant")
        fold, clip = known
        for column in ("truth", "predicted"):
            if row[column] not in run.classes:
                raise UserError(f"{where}: {column} is {_shown(row[column])}, not one of {listed(run.classes, 30)}")
        if row["truth"] != clip.truth:
            raise UserError(f"{where}: {row['utterance']} is {clip.truth} in {run.name}, and {row['truth']} here")
        seed = row.get("seed") or "0"
        if not seed.isdecimal() or len(seed) > _SEED_DIGITS:
            raise UserError(f"{where}: seed is {_shown(seed)}, no whole number of up to {_SEED_DIGITS} digits")
        key = int(seed), _full_name(clip)
        if key in seen:
            raise UserError(f"{where}: {row['utterance']} a second time")
        seen.add(key)
        found = Prediction(clip.corpus, clip.utterance_id, clip.speaker, "test", clip.truth, row["predicted"], {})
        tested.setdefault(Trial(int(seed), fold), []).append(found)
    wanted = {_full_name(p) for found in run.tested.values() for p in found}
    for seed_number in sorted({trial.seed for trial in tested}) or [0]:
        if missing := sorted(clip for clip in wanted if (seed_number, clip) not in seen):
            lacking = f"{len(missing)} of {run.name}'s {len(wanted)} test clips, in seed {seed_number}"
            raise UserError(f"{path} lacks {lacking}: {listed(missing)}")
    return System(str(path), run.plan, tested)


def _clips_by_name(run: System) -> dict[str, tuple[int, Prediction] | None]:
    """Find the run's test clips by id and by `corpus/id`, each with its fold; None for an id that several corpora have."""
    found: dict[str, tuple[int, Prediction] | None] = {}
    for trial, predictions in run.tested.items():
        for p in predictions:
            for name in (p.utterance_id, _full_name(p)):
                known = found.setdefault(name, (trial.fold, p))
                if known and known[1].corpus != p.corpus:
                    found[name] = None
    return found


def _full_name(prediction: Prediction) -> str:
    return f"{prediction.corpus}/{prediction.utterance_id}"


def _rows(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV with their lines in the file. Raises UserError for a column that is missing, or there twice."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            columns = [name for name in (*COLUMNS, "seed") if name in header]
            if lacking := [name for name in COLUMNS if name not in header]:
                has = listed([_shown(name) for name in header]) or "none"
                raise UserError(f"{path} has no column {listed(lacking)}; its columns, between commas, are {has}")
            if twice := [name for name in columns if header.count(name) > 1]:
                raise UserError(f"{path} has the column {twice[0]} twice; which one counts?")
            place = {name: header.index(name) for name in columns}
            for row in filter(None, reader):
                if reader.line_num > _LONGEST:
                    raise UserError(f"{path} has more than {_LONGEST:,} lines")
                yield reader.line_num, {name: row[i].strip() if i < len(row) else "" for name, i in place.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV table in UTF-8 ({error})") from error


def _shown(text: str) -> str:
    """Quote a cell for a message: without control characters, and never a whole file that one quote has swallowed."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Name systems by their last folder or file, or by the whole path where that is another's too."""
    names = [path.name or str(path) for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
