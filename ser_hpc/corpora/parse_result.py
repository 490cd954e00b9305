"""What a parser hands back, and the checks that every parser shares.

A parser is a function `parse(root: Path) -> ParseResult`. Nothing is dropped in silence: a clip is either among the
`utterances` or `skipped` with its path and reason, and a copy that differs from the published one is told in `warnings`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.errors import UserError, listed


@dataclass(frozen=True, slots=True)
class ParseResult:
    """The clips of a corpus in a fixed order, what is unusual about this copy, and (path, reason) of what was left out."""

    utterances: tuple[Utterance, ...]
    warnings: tuple[str, ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()


def finish(
    root: Path,
    layout: str,
    utterances: Sequence[Utterance],
    warnings: Iterable[str] = (),
    skipped: Sequence[tuple[Path, str]] = (),
) -> ParseResult:
    """The result of a parser. Raises UserError where nothing was found, or where two clips share an id.

    `layout` says in words where the corpus's files are expected.
    """
    if not utterances:
        reasons = listed([f"{path}: {reason}" for path, reason in skipped], 3)
        raise UserError(f"{root}: no utterance found; expected {layout}" + (f". Skipped: {reasons}" if skipped else ""))
    repeated = [name for name, count in Counter(u.utterance_id for u in utterances).items() if count > 1]
    if repeated:
        raise UserError(f"{root}: an utterance id must be unique within its corpus, but these occur again: {listed(repeated)}")
    return ParseResult(tuple(utterances), tuple(warnings), tuple(skipped))


def existing_folder(root: Path, layout: str) -> Path:
    """`root`, if it is a folder. Raises UserError if it is not."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}; give the corpus's folder: {layout}")
    return root


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder by name, without hidden ones: `._x.wav` is a note of macOS about x.wav, not a recording."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def count_warnings(what: str, found: Iterable[str], known: Mapping[str, int]) -> list[str]:
    """One line for each name whose number of clips differs from the published one, with both numbers."""
    counts = Counter(found)
    names = list(known) + sorted(set(counts) - set(known))
    return [
        f"{what} {name}: {counts[name]} clips here, {known.get(name, 0)} in the published corpus"
        for name in names
        if counts[name] != known.get(name, 0)
    ]
