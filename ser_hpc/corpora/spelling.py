"""Find emotions in names of folders and files, for corpora named by hand: any case of letters, known typos corrected."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ser_hpc.core.errors import listed

LONGEST_ID = 80


def word_in(name: str, spellings: Mapping[str, str]) -> str:
    """Return the key of `spellings` that is a word of a name, as angry in `2_Angry (x)`; "" if none or several are."""
    found = [word for word in re.findall(r"[a-z]+", name.lower()) if word in spellings]
    return found[0] if len({spellings[word] for word in found}) == 1 else ""


def emotion_folder(path: Path, root: Path, spellings: Mapping[str, str]) -> Path | None:
    """Return the nearest folder around `path` and below `root` whose name holds a word of `spellings`, or None."""
    around = list(path.relative_to(root).parents)[:-1]
    return next((root / folder for folder in around if word_in(folder.name, spellings)), None)


def plain_id(*parts: str) -> str:
    """Join the parts to an id, "-" between them and for what an id may not hold; a long one keeps its end and a hash."""
    whole = "-".join(part for part in parts if part)
    text = re.sub(r"[^A-Za-z0-9_-]+", "-", whole).strip("-") or "clip"
    mark = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return text if len(text) <= LONGEST_ID else f"{text[9 - LONGEST_ID :]}-{mark}"


def typo_warnings(found: Iterable[str], spellings: Mapping[str, str], typos: Iterable[str]) -> list[str]:
    """Return a warning that names the typos among the words found, with what they are read as; none if there are none."""
    seen = sorted(set(found) & set(typos))
    read_as = [f"{word} is read as {spellings[word]}" for word in seen]
    return [f"misspelt emotions are mended: {listed(read_as)}"] if seen else []
