"""Normalise names of speakers, sessions and emotions, and find those that may be one name in several spellings.

    normalize_name(name)    NFC, as every name is read: composed and decomposed letters are the same letters
    is_unknown(" N/A ")     the words for "not known", the same for every reader
    find_ambiguous(names)   names that may be one: `Anna`, `anna `, `ANNA`; `01`, `1`, `001`, `1.0`

Only someone who knows the corpus can tell which of them are one, so packing and planning refuse them until it is declared.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

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
