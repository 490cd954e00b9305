"""Parse a database in audformat (audEERING), as audb loads it: media files, a header and tables, read as plain files.

Layout   ROOT/db.yaml: schemes (what a column's values mean), splits, tables; ROOT/db.<table>.csv or .parquet: its rows; the
         media at the paths in the rows, from ROOT on. Pickled tables (.pkl) are never read.
Rows     A file, or in a segmented table a piece of one (start and end), and a value a column.
Columns  Chosen by their names or their schemes' (`column_names.py`). A label that stands for a word is that word.
Emotion  That of the table `emotion`, or else of the first table with such a column and of its parts for other splits (as
         emotion.categories.train and emotion.categories.test). Other tables of emotions, as the intended beside the perceived
         ones, are not mixed in: they are in `extra` by the table's name, and a warning says so.
Others   The speaker, above all, comes from any table that has the piece or its file; what the header or a misc table
         says of a speaker, as gender or age, is said of the clips.
Splits   A table's own; a file that is in tables of several splits has none. The corpus has the header's name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ser_hpc.core.errors import listed
from ser_hpc.corpora.formats import column_names
from ser_hpc.corpora.formats.audformat_tables import LAYOUT, AudformatTable, Database, Piece, TextFields, read_database
from ser_hpc.corpora.parse_result import ParseResult, make_result, require_folder
from ser_hpc.corpora.spelling import plain_id
from ser_hpc.corpora.utterance import Utterance

PART = re.compile(rf"(?:^|[._-])(?:{'|'.join(column_names.SPLITS)})(?=[._-]|$)")
JUDGED = ("emotion", "intensity", "arousal", "valence", "dominance")
Annotations = tuple[TextFields, TextFields]  # by the field of an utterance, and by the name of any other column


def parse(root: Path) -> ParseResult:
    """Return every piece of the database `root` with an emotion. Raises UserError where it is none or names no speakers."""
    db = read_database(require_folder(root, LAYOUT))
    found = [f"{table.name}.{column}" for table in db.tables for column in table.columns]
    column_names.require_columns(root / "db.yaml", found, [field for table in db.tables for field in table.fields])
    emotions = _tables_of_emotions(db)
    annotations, splits = _annotations(db, {table.name for table in emotions}), _splits(db)
    utterances: list[Utterance] = []
    skipped: list[tuple[Path, str]] = []
    for piece in dict.fromkeys(piece for table in emotions for piece, _ in table.rows):
        audio = root / piece.file
        fields, extra = _merged([*annotations[piece], *_of_file(annotations, piece)])
        fields, extra = _merged([(fields, extra), _of_speaker(db, fields.get("speaker", ""))])
        fields |= {"split": min(splits[piece.file]) if len(splits[piece.file]) == 1 else ""}
        if not fields.get("emotion"):
            skipped.append((audio, "no emotion"))
        elif not audio.is_file():
            skipped.append((audio, "no recording"))
        else:
            utterances.append(
                _utterance(db, audio, piece, column_names.make_annotation({"language": db.language} | fields, extra))
            )
    return make_result(root, LAYOUT, utterances, skipped).with_warnings(_warnings(db, emotions, splits))


def _tables_of_emotions(db: Database) -> list[AudformatTable]:
    """Return the table `emotion`, or else the first table of emotions with its parts for other splits."""
    candidates = [table for table in db.tables if "emotion" in table.fields]
    first = next((table for table in candidates if table.name == "emotion"), candidates[0])
    return [table for table in candidates if PART.sub("", table.name) == PART.sub("", first.name)]


def _annotations(db: Database, emotions: set[str]) -> dict[Piece, list[Annotations]]:
    """Collect each piece's annotations, of the tables in `emotions` first; an emotion of another goes under its name."""
    found: dict[Piece, list[Annotations]] = defaultdict(list)
    for table in sorted(db.tables, key=lambda table: table.name not in emotions):
        for piece, row in table.rows:
            fields = {field: row[column] for field, column in table.fields.items()}
            others = {column: text for column, text in row.items() if column not in table.fields.values()}
            if table.name not in emotions and "emotion" in fields:
                others[table.name] = fields.pop("emotion")
            found[piece].append((fields, others))
    return found


def _merged(sources: Iterable[Annotations]) -> Annotations:
    """Merge annotations: of two texts for one field the first that is not empty."""
    fields: TextFields = {}
    others: TextFields = {}
    for more_fields, more_others in sources:
        fields |= {name: text for name, text in more_fields.items() if text and not fields.get(name)}
        others |= {name: text for name, text in more_others.items() if text and not others.get(name)}
    return fields, others


def _of_file(annotations: dict[Piece, list[Annotations]], piece: Piece) -> list[Annotations]:
    """Return annotations of the whole file that hold for a piece of it: who speaks, but not how."""
    of_file = annotations.get(Piece(piece.file), []) if piece != Piece(piece.file) else []
    return [({field: text for field, text in fields.items() if field not in JUDGED}, others) for fields, others in of_file]


def _of_speaker(db: Database, speaker: str) -> Annotations:
    known = db.speakers.get(speaker, {})
    chosen = {field: name for field, name in column_names.choose_columns(known).items() if field not in column_names.REQUIRED}
    others = {name: text for name, text in known.items() if name not in chosen.values()}
    return {field: known[name] for field, name in chosen.items()}, others


def _splits(db: Database) -> dict[str, set[str]]:
    """Return the splits of each file: of all tables that have it, or a piece of it, and belong to a split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for table in db.tables:
        for piece, _ in table.rows:
            splits[piece.file] |= {table.split} - {""}
    return splits


def _utterance(db: Database, audio: Path, piece: Piece, annotation: dict[str, Any]) -> Utterance:
    times = ["" if time is None else str(round(time * 1000)) for time in (piece.start_s, piece.end_s)]
    return Utterance(
        corpus=column_names.corpus_name(db.name),
        utterance_id=plain_id(str(Path(piece.file).with_suffix("")), *times),
        audio_path=audio,
        start_s=piece.start_s,
        end_s=piece.end_s,
        **annotation,
    )


def _warnings(db: Database, emotions: list[AudformatTable], splits: dict[str, set[str]]) -> list[str]:
    warnings = column_names.renaming_warnings(emotions[0].fields)
    used = {table.name for table in emotions}
    if unused := [table.name for table in db.tables if "emotion" in table.fields and table.name not in used]:
        warnings.append(f"emotions are those of the table {listed(sorted(used))}; those of {listed(unused)} are in `extra`")
    labels: dict[Piece, set[str]] = defaultdict(set)
    for table in emotions:
        for piece, row in table.rows:
            labels[piece] |= {row[table.fields["emotion"]]} - {""}
    if twice := [piece.file for piece, found in labels.items() if len(found) > 1]:
        warnings.append(f"{len(twice)} pieces have two emotions, of which the first is used: {listed(twice, 3)}")
    if several := [file for file, names in splits.items() if len(names) > 1]:
        warnings.append(f"{len(several)} files are in several splits, and so in none: {listed(several, 3)}")
    return warnings
