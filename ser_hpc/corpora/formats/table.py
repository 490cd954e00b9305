"""Parse any corpus given as a table, a CSV file with a header or a JSONL file with one object a line: no code needed.

    audio,emotion,speaker,session,gender
    wav/anna_01.wav,happy,anna,day1,f

Columns  audio (absolute, or relative to the table), emotion, speaker; optional: session, gender (f, m, female, male),
         split (train, dev, test), text_id (clips that say the same words), start_s and end_s (a piece of a longer recording),
         language (two letters), intensity, arousal, valence, dominance. Any other column is kept as a field of the clip that a
         label set may use, and told; one that is almost called like a column above is refused (extra.NAME keeps it all the
         same). An empty value means "not annotated", and so do n/a, nan, none, null, unk, unknown and ?; clips of a speaker not
         known can only train.
Corpus   Named after the file: `My Corpus.csv` is my_corpus.
Ids      The audio path from the table's folder on, without suffix, with "-" for what an id may not hold; a piece of a recording
         adds its times in milliseconds. Ids that would coincide end in a hash of path and times, whatever the order of rows.

All mistakes of a file are told at once, each with its line; a table with a mistake yields nothing.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.formats.column_names import extra_name
from ser_hpc.corpora.names import is_unknown
from ser_hpc.corpora.parse_result import ParseResult, make_result
from ser_hpc.corpora.utterance import LANGUAGE, UNKNOWN_SPEAKER, Utterance

REQUIRED = ("audio", "emotion", "speaker")
NUMBERS = ("start_s", "end_s", "arousal", "valence", "dominance")
COLUMNS = (*REQUIRED, "session", "gender", "split", "text_id", "language", "intensity", *NUMBERS)
EXTRA = "extra."
GENDERS = {"f": "female", "female": "female", "m": "male", "male": "male"}
SPLITS = {"train": "train", "dev": "dev", "test": "test"}
SHOWN = 20
LONGEST_ID = 80


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: its number in the file, and its values by column, stripped.

    A column that it lacks reads as "", and so does a word that says that nobody knows; but an emotion is any word.
    """

    line: int
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        value = self.values.get(column, "")
        return "" if column not in ("audio", "emotion") and is_unknown(value) else value


def parse(root: Path) -> ParseResult:
    """Return the clips of the table `root`, a .csv or .jsonl file. Raises UserError with every mistake in it."""
    if not root.is_file():
        raise UserError(f"{root} is not a file; give a .csv or .jsonl table with the columns {listed(REQUIRED)}")
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if root.suffix.lower() not in readers:
        raise UserError(f"{root}: a table's name ends in .csv or .jsonl, not in {root.suffix!r}")
    problems: list[str] = []
    try:
        rows = readers[root.suffix.lower()](root, problems)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{root} cannot be read as a UTF-8 table: {error}") from error
    clips = {row.line: clip for row in rows if (clip := _utterance(root, row, problems))}
    problems += _repeated(clips)
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise UserError(
            f"{root}: {counted(len(problems), 'mistake')}:\n" + "\n".join(f"  {text}" for text in problems[:SHOWN] + more)
        )
    layout = f"rows below the columns {listed(REQUIRED)}"
    others = sorted({name for row in rows for name in row.values if name not in COLUMNS and not name.startswith(EXTRA)})
    unknown = sum(clip.speaker == UNKNOWN_SPEAKER for clip in clips.values())
    warnings = [f"columns that are kept as fields, for label sets to use: {listed(others, 20)}"] if others else []
    warnings += (
        [f"{unknown} of {counted(len(clips), 'clip')} are of speakers not known: they can only train"] if unknown else []
    )
    return make_result(root, layout, _with_unique_ids(root, list(clips.values()))).with_warnings(warnings)


def _read_csv(path: Path, problems: list[str]) -> list[Row]:
    """Read the rows of a CSV file; mistakes of its shape are added to `problems`, and then there may be fewer rows or none."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        problems += [f"line 1: column {name!r} occurs {count} times" for name, count in Counter(header).items() if count > 1]
        problems += _doubtful(dict.fromkeys(header, 1))
        missing = [name for name in REQUIRED if name not in header]
        if missing:
            problems.append(f"line 1: no column {listed(missing)}; columns are separated by commas, and here are {header}")
            return []
        rows = []
        for values in reader:
            if len(values) == len(header):
                rows.append(Row(reader.line_num, {name: value.strip() for name, value in zip(header, values, strict=True)}))
            elif values:
                problems.append(f"line {reader.line_num}: {len(values)} values under {len(header)} columns")
    return rows


def _read_jsonl(path: Path, problems: list[str]) -> list[Row]:
    """Read the rows of a JSONL file; lines that are no objects of plain values are added to `problems`."""
    rows: list[Row] = []
    first: dict[str, int] = {}  # the line where a column occurs first
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            problems.append(f"line {line}: not JSON: {error}")
            continue
        if not isinstance(value, dict) or not all(isinstance(v, str | int | float | None) for v in value.values()):
            problems.append(f"line {line}: must be an object whose values are texts, numbers or null")
            continue
        for name in value:
            first.setdefault(name, line)
        rows.append(Row(line, {name: str(v).strip() for name, v in value.items() if v is not None}))
    problems += _doubtful(first)
    return rows


def _doubtful(lines: Mapping[str, int]) -> Iterator[str]:
    """Return what is wrong with columns' names, by the line of each: almost a known one, or two that would be one field."""
    fields: dict[str, str] = {}
    for name, line in lines.items():
        if name in COLUMNS:
            continue
        if not name.startswith(EXTRA) and (meant := _meant(name, lines)):
            yield f"line {line}: unknown column {name!r}; did you mean {meant}? Or {EXTRA}{_field(name)}, a field of its own"
        elif fields.setdefault(_field(name), name) != name:
            yield f"line {line}: the columns {fields[_field(name)]!r} and {name!r} would both be the field {_field(name)}"


def _meant(name: str, names: Iterable[str]) -> str | None:
    """Return the known column that a name misspells: roughly, if the table has no such column; by one letter, if it has."""

    def likeness(column: str) -> float:
        same = name.lower() == column.removesuffix("_s")
        return 1.0 if same else difflib.SequenceMatcher(None, name.lower(), column).ratio()

    nearest = max(COLUMNS, key=likeness)
    return nearest if likeness(nearest) >= (0.88 if nearest in names else 0.8) else None


def _field(column: str) -> str:
    """Return the name in `extra` of a column without a meaning of its own."""
    return extra_name(column.removeprefix(EXTRA)) if column else "unnamed"


def _utterance(table: Path, row: Row, problems: list[str]) -> Utterance | None:
    """Return the clip of a row, or None with its mistakes added to `problems`."""
    mistakes = [f"{name} is empty" for name in ("audio", "emotion") if not row[name]]
    audio = table.parent / row["audio"]
    if row["audio"] and not audio.is_file():
        mistakes.append(f"no audio file {audio}")
    if row["language"] and not LANGUAGE.fullmatch(row["language"].lower()):
        mistakes.append(f"language is {row['language']!r}; use its two letters (ISO 639-1), as en, or leave it empty")
    number = {name: _number(name, row, mistakes) for name in NUMBERS}
    gender, split = _word("gender", GENDERS, row, mistakes), _word("split", SPLITS, row, mistakes)
    start, end = number["start_s"] or 0.0, number["end_s"]
    if start < 0 or (end is not None and end <= start):
        mistakes.append(f"a clip from {start} s to {end} s: must be 0 <= start_s < end_s")
    if mistakes:
        problems += [f"line {row.line}: {text}" for text in mistakes]
        return None
    return Utterance(
        corpus=_corpus_name(table),
        utterance_id=_plain_id(table, audio, number["start_s"], end),
        audio_path=audio,
        speaker=row["speaker"],
        emotion=row["emotion"],
        session=row["session"],
        gender=gender,
        text_id=row["text_id"],
        split=split,
        intensity=row["intensity"],
        language=row["language"].lower(),
        extra={_field(name): value for name, value in row.values.items() if value and name not in COLUMNS},
        arousal=number["arousal"],
        valence=number["valence"],
        dominance=number["dominance"],
        start_s=number["start_s"],
        end_s=end,
    )


def _number(column: str, row: Row, mistakes: list[str]) -> float | None:
    """Return the finite number in a column, or None where there is none; anything else is added to `mistakes`."""
    try:
        value = float(row[column] or "nan")
    except ValueError:
        value = math.inf
    if row[column] and not math.isfinite(value):
        mistakes.append(f"{column} is {row[column]!r}, which is not a finite number")
    return value if math.isfinite(value) else None


def _word(column: str, meanings: dict[str, str], row: Row, mistakes: list[str]) -> str:
    """Return the meaning of a column's word, in any case of letters; "" where it is empty or, added to `mistakes`, unknown."""
    word = row[column].lower()
    if word and word not in meanings:
        mistakes.append(f"{column} is {row[column]!r}; use {listed(list(meanings))}, or leave it empty")
    return meanings.get(word, "")


def _repeated(clips: dict[int, Utterance]) -> list[str]:
    """Return a message for every line whose recording, or piece of it, an earlier line has already listed."""
    first: dict[tuple[Path, float, float | None], int] = {}
    problems = []
    for line, clip in clips.items():
        earlier = first.setdefault(_piece(clip), line)
        if earlier != line:
            problems.append(f"line {line}: the same clip as line {earlier}: {clip.audio_path}")
    return problems


def _piece(clip: Utterance) -> tuple[Path, float, float | None]:
    """Return what makes a row a clip of its own: recording, start and end in seconds."""
    return clip.audio_path, clip.start_s or 0.0, clip.end_s


def _corpus_name(table: Path) -> str:
    name = re.sub(r"[^a-z0-9_]+", "_", table.stem.lower()).strip("_")[:24]
    if not name:
        raise UserError(f"{table}: the corpus is named after its table; give the file a name with letters or digits")
    return name


def _from_table(table: Path, audio: Path) -> Path:
    """Return a recording's path relative to the table's folder, so that a corpus may move to another disk and keep its ids."""
    return audio.relative_to(table.parent) if audio.is_relative_to(table.parent) else audio


def _plain_id(table: Path, audio: Path, start_s: float | None, end_s: float | None) -> str:
    """Return a clip's plain id; another clip may have the same, which `_with_unique_ids` resolves."""
    text = str(_from_table(table, audio).with_suffix(""))
    if start_s is not None or end_s is not None:
        text += f"-{round((start_s or 0.0) * 1000)}-{'end' if end_s is None else round(end_s * 1000)}"
    return re.sub(r"[^A-Za-z0-9_-]", "-", text).strip("-")[-LONGEST_ID:] or "clip"


def _with_unique_ids(table: Path, clips: list[Utterance]) -> list[Utterance]:
    """Return the clips, with a hash of path and times at the end of every id that occurs more than once."""
    counts = Counter(clip.utterance_id for clip in clips)

    def unique(clip: Utterance) -> Utterance:
        if counts[clip.utterance_id] == 1:
            return clip
        audio, start_s, end_s = _piece(clip)
        mark = hashlib.sha256(f"{_from_table(table, audio)}\n{start_s}\n{end_s}".encode()).hexdigest()[:8]
        return replace(clip, utterance_id=f"{clip.utterance_id[: LONGEST_ID - 9]}-{mark}")

    return [unique(clip) for clip in clips]
