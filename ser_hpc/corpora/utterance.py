"""The annotations of a corpus: one `Utterance` a clip before packing and one row of `Metadata` a clip after it.

A corpus parser yields utterances; packing writes them into shards; everything downstream (folds, labels, training, reports)
sees only the metadata table and the position of a clip in it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.names import is_unknown, normalize_name
from ser_hpc.corpora.words import WordColumn

# A WebDataset key ends at the first dot, and a slash makes a folder: neither may stand in an id.
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_NAME = re.compile(r"[a-z0-9_]{1,24}")
LANGUAGE = re.compile(r"[a-z]{2,3}")
EXTRA_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
UNKNOWN_SPEAKER = "unknown"
_NAMES = ("speaker", "emotion", "session", "text_id", "intensity")
COLUMNS = ("corpus", "speaker", "emotion", "session", "gender", "text_id", "split", "intensity", "language")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One clip as annotated. `emotion` is the corpus's own word; label sets give it a class later.

    `extra`: further annotations of the clip, by name (age, perceived labels, transcript): a label set may use it.
    `start_s` / `end_s` cut the clip out of a longer recording (seconds; None = from the beginning / to the end).
    Empty strings and None mean "not annotated"; names are held in NFC, and an unknown speaker, in any of the words for that
    (`names.UNKNOWN`), is UNKNOWN_SPEAKER. Raises UserError for values that are not allowed.
    """

    corpus: str
    utterance_id: str
    audio_path: Path
    speaker: str
    emotion: str
    session: str = ""
    gender: str = ""  # "female", "male" or ""
    text_id: str = ""  # clips with one text_id say the same words
    split: str = ""  # "train", "dev" or "test" where the corpus defines a split
    intensity: str = ""
    language: str = ""  # ISO 639-1: "en", "de", "ur"
    arousal: float | None = None
    valence: float | None = None
    dominance: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in _NAMES:
            if (text := getattr(self, name)) and (read := normalize_name(text)) != text:
                object.__setattr__(self, name, read)
        for name in _NAMES:
            if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in getattr(self, name)):
                given = ascii(getattr(self, name))
                raise UserError(f"{self.audio_path}: {name} {given} holds control characters; write it in plain letters")
        if is_unknown(self.speaker):
            object.__setattr__(self, "speaker", UNKNOWN_SPEAKER)
        for name in ("session", "text_id"):
            if getattr(self, name) and is_unknown(getattr(self, name)):
                object.__setattr__(self, name, "")
        if not _NAME.fullmatch(self.corpus):
            raise UserError(f"corpus name {self.corpus!r}: use 1 to 24 of a-z, 0-9 and _")
        if not _ID.fullmatch(self.utterance_id):
            raise UserError(f"{self.audio_path}: utterance id {self.utterance_id!r}: use 1 to 80 of A-Z, a-z, 0-9, _ and -")
        if not self.emotion:
            raise UserError(f"{self.audio_path}: emotion must not be empty")
        if self.gender not in ("", "female", "male"):
            raise UserError(f"{self.audio_path}: gender is {self.gender!r}; use female, male or nothing")
        if self.language and not LANGUAGE.fullmatch(self.language):
            raise UserError(f"{self.audio_path}: language is {self.language!r}; use its two letters (ISO 639-1), as en")
        if wrong := [name for name in self.extra if not EXTRA_NAME.fullmatch(name)]:
            raise UserError(f"{self.audio_path}: {wrong[0]!r} cannot name a field of `extra`: use a-z, 0-9 and _")
        if self.split not in ("", "train", "dev", "test"):
            raise UserError(f"{self.audio_path}: split is {self.split!r}; use train, dev, test or nothing")

    @property
    def key(self) -> str:
        """Name of the clip's members in a shard, unique over corpora."""
        return f"{self.corpus}-{self.utterance_id}"


class TextColumn:
    """A column of texts that are all different, without a Python object for each: at 10^7 clips that is most of a gigabyte.

    Read like a numpy array of str: `texts[3]`, `texts[positions]`, `texts[a:b]`, `len`, `tolist`. `arrow`: the pyarrow array.
    """

    def __init__(self, arrow: Any) -> None:
        self.arrow = arrow

    @classmethod
    def of(cls, values: Any) -> TextColumn:
        """Make a column of texts; one that is a column already is returned."""
        if isinstance(values, cls):
            return values
        import pyarrow as pa

        return cls(pa.array(values, pa.large_string()))

    def __len__(self) -> int:
        return len(self.arrow)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return TextColumn(self.arrow[rows])
        if np.ndim(rows) == 0:
            return self.arrow[int(rows)].as_py()
        import pyarrow as pa  # takes a tenth of a second: reports and status pages do without

        rows = np.asarray(rows)
        return TextColumn(self.arrow.filter(pa.array(rows)) if rows.dtype == bool else self.arrow.take(pa.array(rows)))

    def is_text(self, text: str) -> np.ndarray:
        """Return a mask of the rows that hold this text."""
        import pyarrow.compute as pc

        mask: np.ndarray = pc.equal(self.arrow, text).to_numpy(zero_copy_only=False)
        return mask

    def tolist(self) -> list[str]:
        """Return the texts as a list."""
        texts: list[str] = self.arrow.to_pylist()
        return texts


@dataclass(frozen=True, slots=True)
class Metadata:
    """The packed clips as a table of columns, one row a clip; a clip's row number is its *position*.

    Words are `WordColumn`s, read like numpy object arrays of str ("" = not annotated; such arrays may be given too), ids and
    sounds `TextColumn`s; `seconds` is float64, `sound` the hash of the decoded 16 kHz samples (equal hash = identical sound),
    `extra` a JSON object of text. All have shape (num_clips,). `overlap`, where clips are pieces of longer recordings: equal
    numbers share sound, by their times; -1: with no other.
    """

    corpus: WordColumn
    utterance_id: TextColumn
    speaker: WordColumn
    emotion: WordColumn
    session: WordColumn
    gender: WordColumn
    text_id: WordColumn
    split: WordColumn
    intensity: WordColumn
    language: WordColumn
    extra: WordColumn
    sound: TextColumn
    seconds: np.ndarray
    overlap: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in (*COLUMNS, "extra"):
            object.__setattr__(self, name, WordColumn.of(getattr(self, name)))
        for name in ("utterance_id", "sound"):
            object.__setattr__(self, name, TextColumn.of(getattr(self, name)))

    def __len__(self) -> int:
        return len(self.seconds)

    def column(self, name: str) -> WordColumn:
        """Return a text column, or a field of `extra` ("" where a clip lacks it). Raises UserError naming what there is, or
        where `extra` is not what packing writes."""
        if name in COLUMNS:
            values: WordColumn = getattr(self, name)
            return values
        parsed = {text: _parse_extra(text) for text in self.extra.occurring()}
        known = sorted({name for fields in parsed.values() for name in fields})
        if name not in known:
            raise UserError(f"the clips have no column {name!r}; they have {listed([*COLUMNS, *known], 40)}")
        return self.extra.rename(lambda text: str(parsed.get(text, {}).get(name, "")))

    def take(self, positions: np.ndarray) -> Metadata:
        """Return the rows at `positions` (int array or boolean mask), in that order."""

        def rows(column: Any) -> Any:
            return column.take(positions) if isinstance(column, WordColumn) else None if column is None else column[positions]

        return Metadata(**{field.name: rows(getattr(self, field.name)) for field in fields(self)})


def _parse_extra(text: str) -> dict[str, Any]:
    """Parse a clip's further fields. Raises UserError for what no packing writes."""
    with suppress(ValueError, RecursionError):
        fields = json.loads(text or "{}")
        if isinstance(fields, dict):
            return fields
    raise UserError(f"the further fields of a clip are {text[:60]!r}, no JSON object; pack the corpus again")
