"""Normalise names of speakers, sessions and emotions, find those that may be one name in several spellings, and merge them.

    normalize_name(name)    NFC, as every name is read: composed and decomposed letters are the same letters
    is_unknown(" N/A ")     the words for "not known", the same for every reader
    find_ambiguous(names)   names that may be one: `Anna`, `anna `, `ANNA`; `01`, `1`, `001`, `1.0`

Only someone who knows the corpus can tell which of them are one, so packing and planning refuse them until it is declared.
A name means a person within its corpus. `folds.speaker_aliases` overrides that: {savee/DC: esd/0011} makes one person of two
names, and {savee/01: null} says that this one is nobody else, however alike the names are. Packing may have recorded that.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ser_hpc.core.errors import UserError, counted, listed

if TYPE_CHECKING:
    from ser_hpc.corpora.categorical import Categorical

Same = Mapping[str, str | None]
Distinct = frozenset[tuple[str, str, str]]  # corpus, column and name that packing was told is a name of its own

UNKNOWN = frozenset(["", "?", "unknown", "unk", "n/a", "none", "nan", "null"])
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
# Neither format nor control characters, and yet without width: joiners, fillers and variation selectors.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0",
) | frozenset(map(chr, range(0xFE00, 0xFE10)))
_AS_FLOAT = re.compile(r"(?<=\d)\.0+$")


def normalize_name(text: str) -> str:
    """Return a name in NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@lru_cache(maxsize=1 << 16)  # asked of every prediction of a run
def is_unknown(text: str) -> bool:
    """Return whether a name says that nobody knows it, in any case of letters."""
    return _bare(text) in UNKNOWN


def find_ambiguous(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group different names that are equal but for compatible forms (NFKC), case, white space, invisible characters, zeros
    before a number and `.0` after it: each group sorted, and the groups too."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[_AS_FLOAT.sub("", _LEADING_ZEROS.sub("", _bare(name)))].add(name)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def _bare(name: str) -> str:
    """Remove case, white space and whatever has no width."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(_digit(letter) for letter in folded if not letter.isspace() and not _is_invisible(letter))


def _is_invisible(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cf", "Cc") or letter in _INVISIBLE


def _digit(letter: str) -> str:
    """Return 0 to 9 for the digits of every script, other letters as they are."""
    return str(unicodedata.decimal(letter, letter))


def merge_speakers(speaker: Categorical, corpora: Sequence[str], same: Same) -> Categorical:
    """Return the speakers with equal ones under one name. Raises UserError for a name in `same` that no clip has."""
    from ser_hpc.corpora.categorical import Categorical  # with pyarrow: reports, which normalise names, do without

    qualified = [_qualified(name, corpora) for name in speaker.names]
    given = {*same, *(name for name in same.values() if name is not None)}
    if unknown := sorted(given - set(qualified)):  # a slip on either side would part one person in silence
        raise UserError(
            f"folds.speaker_aliases: there is no speaker {listed(unknown)}; write CORPUS/NAME, as {listed(qualified, 3)}"
        )
    people = [_unqualified(same.get(name) or name, corpora) for name in qualified]
    names = tuple(sorted(set(people)))
    number = {name: code for code, name in enumerate(names)}
    codes = np.array([*(number[name] for name in people), -1], dtype=np.int32)
    return Categorical(names, codes[speaker.codes])


def find_doubtful_names(
    column: str, values: Categorical, corpora: Sequence[str], distinct: Distinct, same: Same | None = None
) -> list[tuple[str, tuple[str, ...]]]:
    """Return corpus and names of those that may be one and are not declared distinct."""
    by_corpus: dict[str, list[str]] = defaultdict(list)
    for name in values.names:
        corpus, _, own = _qualified(name, corpora).partition("/")
        by_corpus[corpus].append(own)
    apart = {(corpus, name) for corpus, of, name in distinct if of == column}
    nobody_else = {(name.partition("/")[0], name.partition("/")[2]) for name, person in (same or {}).items() if person is None}
    doubts = []
    for corpus in sorted(by_corpus):
        for names in find_ambiguous(by_corpus[corpus]):
            left = [name for name in names if (corpus, name) not in nobody_else]
            if len(left) > 1 and not all((corpus, name) in apart for name in left):
                doubts.append((corpus, names))
    return doubts


def refuse_doubtful_speakers(speaker: Categorical, corpora: Sequence[str], distinct: Distinct, same: Same) -> None:
    """Raise UserError if names may be one speaker: a person under two spellings would be trained on and tested."""
    doubts = find_doubtful_names("speaker", speaker, corpora, distinct, same)
    if not doubts:
        return
    corpus, (one, other, *_) = doubts[0]
    raise UserError(
        f"speakers who may be one person, each with several spellings: {describe_doubts(doubts)}. Say which is which: "
        f"folds.speaker_aliases='{{{corpus}/{other}: {corpus}/{one}}}' if they are one, '{{{corpus}/{other}: null}}' if they "
        "are not; or pack the corpus again with --same-speaker or --distinct-speaker"
    )


def describe_doubts(doubts: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    """Join the results of `find_doubtful_names` for an error message."""
    return listed([f"{' = '.join(map(repr, names))} of {corpus}" for corpus, names in doubts])


def shared_name_notes(speaker: Categorical, corpora: Sequence[str], same: Same) -> list[str]:
    """Return a note on names that occur in several corpora; none if there are none, or all of them were decided upon."""
    if len(corpora) < 2:
        return []
    of: dict[str, list[str]] = defaultdict(list)
    for name in speaker.names:
        if name not in same and name not in same.values():
            corpus, _, own = name.partition("/")
            of[own].append(corpus)
    shared = [name for name, found_in in of.items() if len(found_in) > 1]
    if not shared:
        return []
    found = listed([f"{name} ({listed(of[name])})" for name in sorted(shared)], 4)
    name = min(shared)
    one, other = of[name][:2]
    return [
        f"{counted(len(shared), 'name')} of speakers in several corpora, taken for different people: {found}. Where they are "
        f"one, say so: folds.speaker_aliases={{{other}/{name}: {one}/{name}}}, or null where they are not."
    ]


def _qualified(name: str, corpora: Sequence[str]) -> str:
    """Return CORPUS/NAME: names of a single corpus come without it."""
    return name if len(corpora) > 1 else f"{corpora[0]}/{name}"


def _unqualified(name: str, corpora: Sequence[str]) -> str:
    return name if len(corpora) > 1 else name.removeprefix(f"{corpora[0]}/")
