"""The result of a corpus parser, and the functions that all parsers share.

A parser is a function `parse(root: Path) -> ParseResult`. Nothing is dropped in silence: a clip is either among the
`utterances` or `skipped` with its path and reason, and how a copy differs from the published corpus is in `warnings`.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.utterance import Utterance

AUDIO = frozenset([".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".au", ".sph", ".wma"])

COPY = "the same clip as another file, which is used"
_EXAMPLES = 3
_VARYING = re.compile(r"'[^']*'|\S*\d\S*")


@dataclass(frozen=True, slots=True)
class ParseResult:
    """The clips of a corpus in a fixed order, what is unusual about this copy, and (path, reason) of what was left out."""

    utterances: tuple[Utterance, ...]
    warnings: tuple[str, ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()

    def with_warnings(self, warnings: Iterable[str]) -> ParseResult:
        """Return the same result, with these warnings before its own."""
        return replace(self, warnings=(*warnings, *self.warnings))


Parser = Callable[[Path], ParseResult]


def parse_files(
    paths: Iterable[Path], read: Callable[[Path], Utterance | str]
) -> tuple[list[Utterance], list[tuple[Path, str]]]:
    """Return the clips that `read` makes of the files, and (path, reason) of each file for which it returns a reason."""
    utterances: list[Utterance] = []
    skipped: list[tuple[Path, str]] = []
    for path in paths:
        clip = read(path)
        if isinstance(clip, Utterance):
            utterances.append(clip)
        else:
            skipped.append((path, clip))
    return utterances, skipped


def make_result(
    root: Path,
    layout: str,
    utterances: Sequence[Utterance],
    skipped: Sequence[tuple[Path, str]] = (),
    counts: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> ParseResult:
    """Make the result of a parser, each clip once: of a doubled tree the copy nearest to `root` stays, others are `skipped`.

    `layout` describes where the corpus's files are expected. `counts`: the published number of clips by field of an
    utterance and its value; other numbers give `warnings`. Raises UserError where nothing was found, or where
    two clips share an id and are no copies of each other: another speaker, emotion, or anything else but the path.
    """
    if not utterances:
        reasons = listed([f"{path}: {reason}" for path, reason in skipped], 3)
        raise UserError(f"{root}: no utterance found; expected {layout}" + (f". Skipped: {reasons}" if skipped else ""))
    once, copies = _each_once(root, utterances)
    counted = [
        line for field, known in counts.items() for line in count_warnings(field, (getattr(u, field) for u in once), known)
    ]
    warnings = [*counted, *([_doubled(copies)] if copies else [])]
    again = [(clip.audio_path, COPY) for clip, _ in copies]
    return ParseResult(tuple(once), tuple(warnings), (*skipped, *again))


def _each_once(root: Path, utterances: Sequence[Utterance]) -> tuple[list[Utterance], list[tuple[Utterance, Utterance]]]:
    """Return the clips without copies, in their order, and each copy with the clip that is used instead."""
    by_id: dict[str, list[Utterance]] = defaultdict(list)
    for clip in utterances:
        by_id[clip.utterance_id].append(clip)
    copies, different = [], []
    for name, clips in by_id.items():
        first, *others = sorted(clips, key=lambda clip: (len(clip.audio_path.parts), str(clip.audio_path)))
        by_id[name] = [first]
        copies += [(clip, first) for clip in others]
        if any(clip.audio_path == first.audio_path or replace(clip, audio_path=first.audio_path) != first for clip in others):
            different.append(f"{name} ({', '.join(str(clip.audio_path) for clip in clips[:2])})")
    if different:
        raise UserError(
            f"{root}: an utterance id must be unique within its corpus, but {len(different)} stand for clips that do not "
            f"say the same: {listed(different, 3)}. Leave one of each out"
        )
    return [clip for clip in utterances if by_id[clip.utterance_id][0] is clip], copies


def _doubled(copies: Sequence[tuple[Utterance, Utterance]]) -> str:
    def size(clip: Utterance) -> int:
        return clip.audio_path.stat().st_size if clip.audio_path.exists() else -1

    clip, original = copies[0]
    other = sum(size(clip) != size(original) for clip, original in copies)
    encoded = f"; {counted(other, 'of them has', 'of them have')} another size (encoded again?)" if other else ""
    again = counted(len(copies), "clip occurs again", "clips occur again")
    return f"{again}, as {clip.audio_path} of {original.audio_path}: left out{encoded}"


def summarize_reasons(left_out: Iterable[tuple[Path, str]]) -> list[str]:
    """Return a paragraph for each kind of reason, the most frequent first: how many files it holds for, and three of them.

    Reasons are of one kind where they differ in numbers, names and what is quoted alone: `line 7: no recording x_07.wav`.
    """
    kinds: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for path, reason in left_out:
        kinds[_VARYING.sub("", reason)].append((path, reason))
    paragraphs = []
    for found in sorted(kinds.values(), key=len, reverse=True):
        (path, reason), *others = found
        if not others:
            paragraphs.append(f"{path}: {reason}")
            continue
        alike = all(other == reason for _, other in others)
        examples = [str(path) if alike else f"{path}: {why}" for path, why in found[:_EXAMPLES]]
        more = [f"and {len(found) - _EXAMPLES:,} more"] * (len(found) > _EXAMPLES)
        paragraphs.append("\n  ".join([f"{len(found):,} files:" + f" {reason}" * alike, *examples, *more]))
    return paragraphs


def require_folder(root: Path, layout: str) -> Path:
    """Return `root`, if it is a folder. Raises UserError if it is not."""
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{root} {problem}; give the corpus's folder: {layout}")
    return root


def visible_files(folder: Path) -> list[Path]:
    """List the files of a folder by name, without hidden ones: `._x.wav` is metadata of macOS about x.wav, no recording."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def find_recordings(root: Path) -> list[Path]:
    """List every audio file below `root`, by path, without hidden files and folders and macOS's `__MACOSX`."""
    found: list[Path] = []
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link upwards
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "__MACOSX")
        found += [Path(folder, name) for name in names if Path(name).suffix.lower() in AUDIO and not name.startswith(".")]
    return sorted(found)


def count_warnings(what: str, found: Iterable[str], known: Mapping[str, int]) -> list[str]:
    """Return a line for each name whose number of clips differs from the published one, with both numbers."""
    counts = Counter(found)
    names = list(known) + sorted(set(counts) - set(known))
    return [
        f"{what} {name}: {counted(counts[name], 'clip')} here, {known.get(name, 0):,} in the published corpus"
        for name in names
        if counts[name] != known.get(name, 0)
    ]
