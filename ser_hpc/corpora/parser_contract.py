"""Check a parser against the rules that every parser keeps, on any copy of a corpus, a real one or a test's.

Where a rule needs another copy (the tree inside itself, what macOS leaves in archives, folders listed in another order), it is
made of links in a temporary folder: no recording is read or copied, and nothing is written into the corpus.
"""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.corpora.parse_result import Parser, ParseResult, find_recordings
from ser_hpc.corpora.utterance import Utterance

SECTIONS = ("Layout", "Names", "Counts", "Defects")
LONGEST_KEY = 95  # a tar's header has 100 bytes for `<key>.flac`
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class CorpusCopy:
    """A copy of a corpus, and what its parser returned for it."""

    parse: Parser
    root: Path
    result: ParseResult
    label_sets: Sequence[LabelSet]


ContractRule = Callable[[CorpusCopy], Iterator[str]]

READS = "the parser reads this copy"


def check_parser(
    parse: Parser, root: Path, label_sets: Sequence[LabelSet] = (), *, published: bool = True
) -> dict[str, list[str]]:
    """Return messages on what is wrong, by rule, in the order of the rules; an empty list for each rule that is kept.

    `published`: the parser is of one corpus; not of a format (csv, hf) that may hold any. Where `root` is a file (a table),
    rules about folders do not apply and are left out.
    """
    found = _parsed(parse, root)
    if isinstance(found, str):
        return {READS: [found], REFUSES: list(_refuses_wrong_roots(parse))}
    copy = CorpusCopy(parse, root, found, label_sets)
    rules = RULES | (FOLDER_RULES if root.is_dir() else {}) | (CORPUS_RULES if published else {})
    return {READS: [], REFUSES: list(_refuses_wrong_roots(parse))} | {name: list(rule(copy)) for name, rule in rules.items()}


def _parsed(parse: Parser, root: Path) -> ParseResult | str:
    """Return the parser's result, or a message on its failure."""
    try:
        return parse(root)
    except UserError as error:
        return f"it is refused: {error}"
    except Exception as error:  # of whatever kind: a parser's mistake is what is looked for
        return f"{type(error).__name__}: {error}, instead of a UserError in words"


def _refuses_wrong_roots(parse: Parser) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as temporary:
        empty, file, missing = (Path(temporary, name) for name in ("empty", "notes.txt", "nowhere"))
        empty.mkdir()
        file.touch()
        for what, root in (("a folder that does not exist", missing), ("an empty folder", empty), ("a file of notes", file)):
            try:
                clips = len(parse(root).utterances)
                yield f"{what} is no UserError, but a result with {clips} clips"
            except UserError as error:
                if str(root) not in str(error):
                    yield f"{what} is a UserError that does not name it: {error}"
            except Exception as error:
                yield f"{what} is no UserError, but {type(error).__name__}: {error}"


def _any_listing(copy: CorpusCopy) -> Iterator[str]:
    for backwards in (False, True):
        with _listed(backwards):
            again = _parsed(copy.parse, copy.root)
        if isinstance(again, str):
            yield again
        elif again.utterances != copy.result.utterances:
            yield f"folders listed {'backwards' if backwards else 'by name'} give {_difference(copy.result, again)}"
        else:
            continue
        return


def _unique_ids(copy: CorpusCopy) -> Iterator[str]:
    clips = copy.result.utterances
    if repeated := [name for name, count in Counter(clip.utterance_id for clip in clips).items() if count > 1]:
        yield f"{len(repeated)} ids stand for more than one clip: {listed(repeated, _SHOWN)}"
    if long := [clip.key for clip in clips if len(clip.key) > LONGEST_KEY]:
        yield f"{len(long)} keys are longer than {LONGEST_KEY} characters, too long for a tar: {listed(long, _SHOWN)}"
    if len(corpora := sorted({clip.corpus for clip in clips})) > 1:
        yield f"the clips name several corpora: {listed(corpora)}"
    if gone := [clip.audio_path for clip in clips if not clip.audio_path.is_file()]:
        yield f"{len(gone)} clips have no recording, and should be skipped with that reason: {listed(gone, _SHOWN)}"


def _nothing_dropped(copy: CorpusCopy) -> Iterator[str]:
    reported = {clip.audio_path.absolute() for clip in copy.result.utterances}
    reported |= {path.absolute() for path, _ in copy.result.skipped}
    mentioned = {
        word for _, reason in copy.result.skipped for word in re.findall(r"[\w-]+", reason)
    }  # a line of labels names its clip
    lost = [path for path in find_recordings(copy.root) if path.absolute() not in reported and path.stem not in mentioned]
    if lost:
        yield f"{len(lost)} recordings are neither a clip nor skipped with a reason: {listed(lost, _SHOWN)}"


def _reasons(copy: CorpusCopy) -> Iterator[str]:
    if silent := [path for path, reason in copy.result.skipped if not reason.strip()]:
        yield f"{len(silent)} files are skipped without a reason: {listed(silent, _SHOWN)}"


def _hidden_files(copy: CorpusCopy) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, copy.root.resolve().name)
        for path in _link_tree(copy.root, root):
            note = path.with_name(f"._{path.name}")
            if not note.exists():
                note.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
        _link_tree(copy.root, root / "__MACOSX")
        _link_tree(copy.root, root / ".Trash")
        yield from _other_clips(copy, root)


def _doubled_tree(copy: CorpusCopy) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, copy.root.resolve().name)
        _link_tree(copy.root, root)
        _link_tree(copy.root, root / "copy")
        yield from _other_clips(copy, root)


def _docstring(copy: CorpusCopy) -> Iterator[str]:
    text = inspect.getdoc(inspect.getmodule(copy.parse)) or ""
    if missing := [name for name in SECTIONS if not re.search(rf"^{name}\b", text, re.MULTILINE)]:
        yield f"the docstring of {getattr(copy.parse, '__module__', 'its module')} has no section {listed(missing)}"


def _label_set(copy: CorpusCopy) -> Iterator[str]:
    emotions = {clip.emotion for clip in copy.result.utterances}
    corpora = {clip.corpus for clip in copy.result.utterances}
    unknown = [
        (sorted(emotions - {*labels.classes, *labels.mapping, *labels.by_corpus.get(corpus, ())}), labels.name)
        for labels in copy.label_sets
        for corpus in corpora
        if labels.columns == ("emotion",)
    ]
    missing, name = min(unknown, key=lambda one: len(one[0]), default=(sorted(emotions), "none"))
    if missing:
        yield f"no label set knows every emotion of the corpus; the nearest, {name}, lacks {listed(missing, 20)}"


REFUSES = "a missing root, an empty folder and a foreign file are refused in words"
RULES: dict[str, ContractRule] = {
    "the clips and their order do not depend on how folders are listed": _any_listing,
    "ids are unique, short enough for a tar, and of files that are there": _unique_ids,
    "whatever is skipped has a reason": _reasons,
}
FOLDER_RULES: dict[str, ContractRule] = {
    "every recording is a clip, or skipped": _nothing_dropped,
    "hidden files and what macOS adds change nothing": _hidden_files,
    "a copy of the tree inside itself changes nothing": _doubled_tree,
}
CORPUS_RULES: dict[str, ContractRule] = {
    f"the docstring has the sections {', '.join(SECTIONS)}": _docstring,
    "a label set knows every emotion": _label_set,
}


def _other_clips(copy: CorpusCopy, root: Path) -> Iterator[str]:
    """Yield how the clips of a changed copy in `root` differ from those of the copy."""
    changed = _parsed(copy.parse, root)
    if isinstance(changed, str):
        yield changed
    elif _without_root(changed, root) != _without_root(copy.result, copy.root):
        yield _difference(copy.result, changed)


def _without_root(result: ParseResult, root: Path) -> list[Utterance]:
    return [replace(clip, audio_path=Path(os.path.relpath(clip.audio_path, root))) for clip in result.utterances]


def _difference(before: ParseResult, after: ParseResult) -> str:
    names = [{clip.utterance_id for clip in result.utterances} for result in (before, after)]
    differences = [
        f"{len(some)} clips {what}: {listed(sorted(some), _SHOWN)}"
        for what, some in (("less", names[0] - names[1]), ("more", names[1] - names[0]))
        if some
    ]
    if differences:
        return "; ".join(differences)
    first = next((a.utterance_id, b.utterance_id) for a, b in zip(before.utterances, after.utterances, strict=True) if a != b)
    if first[0] == first[1]:
        return f"the same ids, but other files or fields: {first[0]} for one"
    return f"the same clips in another order: {first[0]} or {first[1]} first. Sort what is listed"


def _link_tree(source: Path, target: Path) -> list[Path]:
    """Make a tree of real folders with links to the files of `source`; existing files stay. Returns the links made."""
    links = []
    for folder, inner, names in os.walk(source, followlinks=True):
        inner.sort()
        here = target / os.path.relpath(folder, source)
        here.mkdir(parents=True, exist_ok=True)
        new = [name for name in sorted(names) if not (here / name).exists()]
        for name in new:
            (here / name).symlink_to(Path(folder, name).absolute())
        links += [here / name for name in new]
    return links


class _Entries:
    """What `os.scandir` returns (an iterator and a context manager), sorted by name."""

    def __init__(self, entries: Iterable[os.DirEntry[str]], backwards: bool) -> None:
        self._sorted = iter(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    def __iter__(self) -> _Entries:
        return self

    def __next__(self) -> os.DirEntry[str]:
        return next(self._sorted)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._sorted = iter(())


@contextmanager
def _listed(backwards: bool) -> Iterator[None]:
    """Let folders list their files by name, or backwards: file systems do it in any order."""
    listdir, scandir = os.listdir, os.scandir

    def names(folder: Any = ".") -> list[str]:
        return sorted(listdir(folder), reverse=backwards)

    def entries(folder: Any = ".") -> _Entries:
        with scandir(folder) as found:
            return _Entries(found, backwards)

    with patch.multiple(os, listdir=names, scandir=entries):
        yield
