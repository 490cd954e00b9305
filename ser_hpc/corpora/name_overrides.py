"""The user's declarations about names at packing: that two are one, or that two that look alike are not.

    --same-speaker ANNA=anna        ANNA is read as anna; also --same-session, --same-emotion
    --same-speaker FILE             many at once: YAML, {ANNA: anna, "anna ": anna}
    --distinct-speaker 01=1         two people; also --distinct-session, --distinct-emotion

Undeclared, names that may be one are refused: the same speaker would be trained on and tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.names import find_ambiguous, normalize_name
from ser_hpc.corpora.utterance import Utterance

COLUMNS = ("speaker", "session", "emotion")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class NameOverrides:
    """The declarations. `same[column]`: what a name is read as. `distinct`: (column, name) of names that are nobody else's."""

    same: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    distinct: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def parse(cls, same: Mapping[str, Iterable[str]], distinct: Mapping[str, Iterable[str]]) -> NameOverrides:
        """Parse the command line's values, by column. Raises UserError for what is no pair of names, and for chains of them."""
        read_as = {
            column: dict(pair for text in texts for pair in _pairs("same", column, text)) for column, texts in same.items()
        }
        apart = {
            (column, name)
            for column, texts in distinct.items()
            for text in texts
            for pair in _pairs("distinct", column, text)
            for name in pair
        }
        for column, names in read_as.items():
            if chained := sorted(set(names) & set(names.values())):
                raise UserError(
                    f"--same-{column}: {chained[0]!r} is read as {names[chained[0]]!r}, so nothing can be read as it"
                )
        return cls(read_as, frozenset(apart))

    def apply(self, utterances: Sequence[Utterance]) -> tuple[Utterance, ...]:
        """Return the clips with their names replaced by those in `same`. Raises UserError for a name that no clip has."""
        for column, names in self.same.items():
            known_names = {getattr(utterance, column) for utterance in utterances}
            if unknown := sorted({*names, *names.values()} - known_names):
                known = listed(sorted(known_names), 20)
                raise UserError(
                    f"--same-{column}: no clip has {listed([repr(name) for name in unknown])}; {column}s here: {known}"
                )
        return tuple(self._read(utterance) for utterance in utterances)

    def refuse_ambiguous(self, utterances: Sequence[Utterance]) -> None:
        """Raise UserError showing every set of names that may be one, with the numbers of their clips, if there are any."""
        problems = []
        for column in COLUMNS:
            counts = Counter((utterance.corpus, getattr(utterance, column)) for utterance in utterances)
            for corpus in sorted({corpus for corpus, _ in counts}):
                for names in find_ambiguous(name for of, name in counts if of == corpus):
                    if not all((column, name) in self.distinct for name in names):
                        each = " = ".join(f"{name!r} ({counted(counts[corpus, name], 'clip')})" for name in names)
                        problems.append((column, names, f"{column} of {corpus}: {each}"))
        if not problems:
            return
        column, (one, other, *_), _ = problems[0]
        lines = [line for _, _, line in problems[:_SHOWN]] + [f"and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
        raise UserError(
            "names that may be one, spelt differently:\n  " + "\n  ".join(lines) + "\n"
            f"Say which are: --same-{column} {_quoted(one, other)} ({one!r} is read as {other!r}; a YAML file of pairs does as "
            f"well), and which are not: --distinct-{column} {_quoted(one, other)}"
        )

    def of_corpora(self, corpora: Iterable[str]) -> frozenset[tuple[str, str, str]]:
        """Return what dataset.json keeps: corpus, column and name of names that are nobody else's."""
        return frozenset((corpus, column, name) for corpus in corpora for column, name in self.distinct)

    def _read(self, utterance: Utterance) -> Utterance:
        changes: dict[str, Any] = {
            column: names[name] for column, names in self.same.items() if (name := getattr(utterance, column)) in names
        }
        return replace(utterance, **changes) if changes else utterance


def _pairs(what: str, column: str, text: str) -> list[tuple[str, str]]:
    """Parse `A=B` as one pair, or return all pairs of a YAML file."""
    one, equals, other = text.partition("=")
    path = Path(text)
    if not equals or path.is_file():
        try:
            tree = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # every name as it is written: 010 is no number
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"--{what}-{column} {text}: write NAME=OTHER, or a YAML file of such pairs ({error})") from error
        if not isinstance(tree, dict):
            raise UserError(f"--{what}-{column} {text}: the file must take names to names, but holds {type(tree).__name__}")
        if wrong := [name for name, value in tree.items() if not (isinstance(name, str) and isinstance(value, str))]:
            raise UserError(f"--{what}-{column} {text}: {wrong[0]!r} must be a name and stand for one")
        return [(normalize_name(name), normalize_name(value)) for name, value in tree.items()]
    if not one or not other:
        raise UserError(f"--{what}-{column} {text}: write NAME=OTHER, or a YAML file of such pairs")
    return [(normalize_name(one), normalize_name(other))]


def _quoted(one: str, other: str) -> str:
    text = f"{one}={other}"
    return text if text.isascii() and not any(letter.isspace() for letter in text) else f"'{text}'"
