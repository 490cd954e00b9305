"""Map annotated emotions to classes by a label set, a YAML file that is applied at training time; shards never change.

    name: iemocap_4
    classes: [angry, happy, neutral, sad]        # a class's index is its place in this list
    map: {ang: angry, hap: happy, exc: happy, neu: neutral, sad: sad, fru: null, xxx: null}   # null: dropped, and counted

    column: [emotion, intensity]                 # optional: columns to read instead of `emotion`, joined: anger/high
    map: {esd: {surprise: null}, surprise: surprised}     # under the name of a corpus: for that one alone, and goes first

Whatever occurs in the shards must be a key of `map` (a class's own name may be left out), so that a typo or a new code is never
dropped in silence. `column` may name any text that the clips carry, the corpus's extra fields included.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.names import find_ambiguous, is_unknown
from ser_hpc.corpora.utterance import Metadata
from ser_hpc.corpora.words import WordColumn

Meaning = dict[str, str | None]
DROPPED = -1
KEYS = ("name", "classes", "map", "column")


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A label set. `classes[i]` is the name of class i; `mapping` takes an annotation to a class, or to None (dropped).

    `by_corpus` does so for one corpus, and goes first. An annotation is the text in `columns`, joined by a slash.
    """

    name: str
    classes: tuple[str, ...]
    mapping: Meaning
    by_corpus: dict[str, Meaning] = field(default_factory=dict)
    columns: tuple[str, ...] = ("emotion",)

    def annotations(self, metadata: Metadata) -> WordColumn:
        """Return the annotation of each clip, (num_clips,). Raises UserError for an unknown column."""
        return reduce(WordColumn.join, (metadata.column(name) for name in self.columns))

    def targets(self, metadata: Metadata) -> np.ndarray:
        """Return the class index of each clip, `DROPPED` (-1) where the set gives it no class. int64 (num_clips,).

        Raises UserError naming every annotation that the set does not know, with its count.
        """
        index = {name: i for i, name in enumerate(self.classes)}
        common = {name: name for name in self.classes} | self.mapping
        annotations = self.annotations(metadata)
        corpora, texts = metadata.corpus.names.tolist(), annotations.names.tolist()
        pair_of = metadata.corpus.codes.astype(np.int64) * len(texts) + annotations.codes
        target = np.full(len(corpora) * len(texts), DROPPED, dtype=np.int64)
        unknown = {}
        for pair, clips in enumerate(np.bincount(pair_of, minlength=len(target)).tolist()):
            corpus, text = corpora[pair // len(texts)], texts[pair % len(texts)]
            known = common | self.by_corpus.get(corpus, {})
            if clips and text not in known:
                unknown[corpus, text] = clips
            elif clips and (name := known[text]) is not None:
                target[pair] = index[name]
        if unknown:
            found = listed([f"{text!r} of {corpus} ({clips} clips)" for (corpus, text), clips in sorted(unknown.items())])
            raise UserError(
                f"label set {self.name!r} does not know the {'/'.join(self.columns)} {found}; it knows "
                f"{listed(sorted(common), 20)}. Give each a class under `map`, or null to leave it out."
            )
        targets: np.ndarray = target[pair_of]
        return targets

    def as_identity(self) -> dict[str, Any]:
        """Return what changes a result: all but the set's name. For a run's identity."""
        per_corpus = {"by_corpus": self.by_corpus} if self.by_corpus else {}
        columns = {"columns": self.columns} if self.columns != ("emotion",) else {}
        return {"classes": self.classes, "map": sorted(self.mapping.items()), **per_corpus, **columns}


def _without_nulls(tree: Any) -> Any:
    """Replace YAML's words for null by None: a loader that reads every word as text leaves them as they are."""
    if isinstance(tree, dict):
        return {name: _without_nulls(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_without_nulls(value) for value in tree]
    return None if tree in ("", "~", "null", "Null", "NULL") else tree


def label_set_as_annotated(metadata: Metadata) -> LabelSet:
    """Make a label set with each emotion that occurs as a class, in alphabetical order; words for "unknown" are dropped.

    Raises UserError where two emotions differ in their spelling alone.
    """
    emotions = metadata.emotion.occurring()
    classes = tuple(emotion for emotion in emotions if not is_unknown(emotion))
    if alike := find_ambiguous(classes):
        raise UserError(
            f"emotions that may be one: {listed([' = '.join(map(repr, same)) for same in alike])}. "
            "Give a label set (data.labels=FILE) that says which class each stands for, or pack the corpus again with "
            f"--same-emotion {shlex.quote(f'{alike[0][0]}={alike[0][1]}')}"
        )
    return LabelSet("as_annotated", classes, {emotion: None for emotion in emotions if is_unknown(emotion)})


def dump_label_set(label_set: LabelSet) -> str:
    """Return the set as the YAML text of a file that `load_label_set` reads as an equal one."""
    mapping: dict[str, Any] = {**label_set.mapping, **label_set.by_corpus}
    columns = {"column": list(label_set.columns)} if label_set.columns != ("emotion",) else {}
    tree = {"name": label_set.name, "classes": list(label_set.classes), "map": mapping, **columns}
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def load_label_set(path: Path) -> LabelSet:
    """Read and check a label-set file. Raises UserError with every mistake in it."""
    try:
        raw = _without_nulls(yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader))  # words as they are written
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"label set {path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"label set {path}: must be a mapping with the keys {listed(KEYS)}")
    classes, mapping, columns = raw.get("classes"), raw.get("map") or {}, raw.get("column", ["emotion"])
    problems = [f"unknown key {key!r}; allowed: {listed(KEYS)}" for key in raw if key not in KEYS]
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(c, str) for c in classes):
        problems.append(f"classes must be a list of at least two names, but is {classes!r}")
        classes = []
    columns = [columns] if isinstance(columns, str) else columns
    if not isinstance(columns, list) or not columns or not all(isinstance(name, str) for name in columns):
        problems.append(f"column must be the name of a column, or a list of names, but is {columns!r}")
        columns = []
    if len(set(classes)) != len(classes):
        problems.append(f"classes has a name twice: {classes}")
    if not isinstance(mapping, dict):
        problems.append(f"map must take emotions to classes, but is {mapping!r}")
        mapping = {}
    by_corpus = {str(corpus): value for corpus, value in mapping.items() if isinstance(value, dict)}
    common = {str(word): value for word, value in mapping.items() if not isinstance(value, dict)}
    for section, meaning in [("map", common), *((f"map.{corpus}", value) for corpus, value in by_corpus.items())]:
        problems += [
            f"{section}.{word}: {name!r} is not one of the classes {classes}"
            for word, name in meaning.items()
            if name is not None and name not in classes
        ]
    if problems:
        raise UserError(f"label set {path}:\n" + "\n".join(f"  {problem}" for problem in problems))
    by_corpus = {corpus: {str(word): name for word, name in meaning.items()} for corpus, meaning in by_corpus.items()}
    return LabelSet(str(raw.get("name", path.stem)), tuple(classes), common, by_corpus, tuple(columns))
