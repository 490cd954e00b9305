"""Map the columns of a foreign table to fields of an utterance, by their names, and read their words. For hf and audformat.

A field of an utterance is looked for under the names below, in any case of letters, the first that occurs wins, and what was
chosen is told. All other columns go into `extra`, and so does a word that its field does not know.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER

REQUIRED = ("emotion", "speaker")
NAMES: dict[str, tuple[str, ...]] = {
    "emotion": ("emotion", "emotions", "emotion_label", "emotion_class", "major_emotion", "emo", "emoclass", "label", "labels"),
    "speaker": ("speaker", "speaker_id", "speakerid", "spkrid", "spk", "spk_id", "actor", "actor_id", "client_id"),
    "session": ("session", "session_id"),
    "gender": ("gender", "sex", "speaker_gender"),
    "text_id": ("text_id", "sentence_id", "statement_id"),
    "split": ("split", "partition", "split_set"),
    "intensity": ("intensity", "emotion_intensity", "emotion_level", "level"),
    "language": ("language", "lang"),
    "arousal": ("arousal", "activation", "emoact"),
    "valence": ("valence", "emoval"),
    "dominance": ("dominance", "emodom"),
}
GENDERS = dict.fromkeys(("f", "female", "woman"), "female") | dict.fromkeys(("m", "male", "man"), "male")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("dev", "development", "devel", "val", "valid", "validation"), "dev")
_LANGUAGES = """
    eng en english en  deu de german de  urd ur urdu ur  hin hi hindi hi  fra fr french fr  spa es spanish es  ita it italian it
    zho zh cmn zh chinese zh mandarin zh  jpn ja japanese ja  kor ko korean ko  por pt  rus ru  fas fa pes fa  tur tr  ara ar
    nld nl  pol pl  ell el  ben bn  est et  dan da  swe sv
"""
LANGUAGES = dict(zip(_LANGUAGES.split()[::2], _LANGUAGES.split()[1::2], strict=True))


def normalized(name: str) -> str:
    """Return a column's name as it is compared with NAMES."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def choose_columns(columns: Iterable[str]) -> dict[str, str]:
    """Return the column of each field that has one."""
    found: dict[str, str] = {}
    for column in columns:
        found.setdefault(normalized(column), column)
    firsts = {field: next((name for name in names if name in found), None) for field, names in NAMES.items()}
    return {field: found[name] for field, name in firsts.items() if name is not None}


def require_columns(path: Path, columns: Iterable[str], fields: Iterable[str]) -> None:
    """Raise UserError, with the columns and the names looked for, where emotion or speaker has none."""
    if missing := [field for field in REQUIRED if field not in set(fields)]:
        looked_for = "; ".join(f"for {field}: {listed(NAMES[field], 20)}" for field in missing)
        raise UserError(
            f"{path}: no column says {' or '.join(missing)}. Its columns are {listed(sorted(set(columns)), 40)}; looked for, "
            f"{looked_for}. Rename one, or read a table (csv) instead; a speaker whom nobody knows is called {UNKNOWN_SPEAKER}"
        )


def renaming_warnings(fields: Mapping[str, str]) -> list[str]:
    """Return a warning that names the columns taken for a field of another name; none if there are none."""
    read = [f"{field} from {column}" for field, column in fields.items() if normalized(column) != field]
    return [f"read by the columns' names: {listed(read, len(read))}"] if read else []


def make_annotation(fields: Mapping[str, str], others: Mapping[str, str]) -> dict[str, Any]:
    """Return arguments of `Utterance` from the texts of its fields and those of the other columns ("" = not annotated)."""
    known: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    for field, text in fields.items():
        value = _MEANING.get(field, str.strip)(text)
        if value not in ("", None):
            known[field] = value
        elif text.strip():
            unknown[field] = text.strip()
    extra = {extra_name(column): text.strip() for column, text in others.items() if text.strip()}
    return {"speaker": UNKNOWN_SPEAKER} | known | {"extra": extra | unknown}


def split_of(text: str) -> str:
    """Return train, dev or test for a word that begins with one, as train-00000-of-00002 or validation; else ""."""
    word = re.match(r"[a-z]*", text.strip().lower())
    return SPLITS.get(word[0], "") if word else ""


def language_of(text: str) -> str:
    """Return the two letters of a language given by code or name, as en-US, eng or English; "" for one not listed here."""
    word = re.split(r"[-_ ]", text.strip().lower())[0]
    return word if re.fullmatch(r"[a-z]{2}", word) else LANGUAGES.get(word, "")


def text_of(value: Any) -> str:
    """Return a plain value as text; "" for none (None, NaN)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


def corpus_name(text: str) -> str:
    """Make the name of a corpus, as my_set of "My Set". Raises UserError where `text` has no letter or digit."""
    if not (name := normalized(text)[:24].strip("_")):
        raise UserError(f"a corpus cannot be named {text!r}; use letters or digits")
    return name


def _number(text: str) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def extra_name(column: str) -> str:
    """Make a name in an utterance's `extra` for a column of any name."""
    name = normalized(column)[:38].strip("_")
    return name if re.match("[a-z]", name) else f"x_{name}".rstrip("_")


_MEANING: dict[str, Callable[[str], Any]] = {
    "emotion": lambda text: text.strip().lower(),
    "gender": lambda text: GENDERS.get(text.strip().lower(), ""),
    "split": split_of,
    "language": language_of,
    "arousal": _number,
    "valence": _number,
    "dominance": _number,
}
