"""What a protocol divides: the clips that have a class, sorted by name, with speakers, sessions and corpora as numbers.

Names become numbers once, in Arrow, so that dividing and checking a million clips is arithmetic on arrays of integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ser_hpc.corpora.labels import DROPPED, LabelSet
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER, Metadata, Texts
from ser_hpc.errors import UserError, listed

NOWHERE, TRAIN, DEV, TEST = -1, 0, 1, 2
SIDES = ("training", "dev", "test")
_AT_ONCE = 1 << 20
_SLASH = pa.scalar("/", pa.large_string())


@dataclass(frozen=True, slots=True)
class Column:
    """Names as numbers: row i has `names[codes[i]]`, or none where its code is -1. `codes`: int32 (num_clips,)."""

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, values: pa.Array) -> Column:
        """Names are sorted. Empty values have no code."""
        encoded = values.dictionary_encode()
        order = pc.sort_indices(encoded.dictionary).to_numpy()
        names = encoded.dictionary.take(order).to_pylist()
        empty = int(names[:1] == [""])
        code = np.empty(len(order), dtype=np.int32)
        code[order] = np.arange(len(names)) - empty
        return cls(tuple(names[empty:]), code[encoded.indices.to_numpy()])

    @classmethod
    def of_repeated(cls, values: pa.Array) -> Column:
        """The same, but a value that stands once has no code either: a table of ten million different ones takes gigabytes."""
        parts = (values[start : start + _AT_ONCE].to_pylist() for start in range(0, len(values), _AT_ONCE))
        hashes = np.concatenate([np.fromiter(map(hash, part), np.int64, len(part)) for part in parts])
        ordered = np.sort(hashes)
        rows = np.flatnonzero(np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]]))
        some = cls.of(values.take(pa.array(rows)))
        counts = np.bincount(some.codes[some.codes >= 0], minlength=len(some.names))
        code = np.where(counts > 1, np.cumsum(counts > 1) - 1, -1).astype(np.int32)  # hashes may meet by chance
        codes = np.full(len(values), -1, dtype=np.int32)
        codes[rows] = np.where(some.codes >= 0, code[some.codes], -1) if len(rows) else -1
        return cls(tuple(name for name, count in zip(some.names, counts, strict=True) if count > 1), codes)

    def within(self, rows: np.ndarray) -> tuple[str, ...]:
        """The names that occur in `rows` (a mask or positions), sorted."""
        present = np.zeros(len(self.names) + 1, dtype=bool)
        present[self.codes[rows]] = True  # rows without a name: the last place
        return tuple(self.names[code] for code in np.flatnonzero(present[:-1]))

    def is_name(self, name: str) -> np.ndarray:
        """Mask of the rows that have this name."""
        mask: np.ndarray = self.codes == (self.names.index(name) if name in self.names else len(self.names))
        return mask


@dataclass(frozen=True, slots=True)
class Clips:
    """The clips that have a class, sorted by corpus and id, so that nothing depends on the order of the metadata.

    Speakers, sessions and texts are unique only with their corpus; where there are several corpora their names say which.
    A clip of an unknown speaker has no speaker. All arrays have shape (num_clips,).
    """

    classes: tuple[str, ...]
    positions: np.ndarray  # rows of the metadata, int64
    target: np.ndarray
    key: pa.Array  # corpus/id, ascending
    corpus: Column
    speaker: Column
    session: Column
    text: Column
    sound: Column  # those that stand more than once
    gender: Column
    split: Column

    @classmethod
    def of(cls, metadata: Metadata, label_set: LabelSet) -> Clips:
        """Raises UserError where two rows are the same clip or none has a class."""
        targets = label_set.targets(metadata)
        used = np.flatnonzero(targets != DROPPED)
        if not len(used):
            raise UserError(f"label set {label_set.name!r} gives none of the {len(metadata)} clips a class")
        unsorted = _with_corpus(_text(metadata.corpus[used]), _text(metadata.utterance_id[used]))
        order = pc.sort_indices(unsorted)
        positions = used[order.to_numpy()]
        key = unsorted.take(order)
        del unsorted, order
        if len(twice := np.flatnonzero(pc.equal(key[1:], key[:-1]).to_numpy(zero_copy_only=False))):
            names = listed(key.take(twice).to_pylist())
            raise UserError(f"clips that stand twice in the metadata: {names}; pack each corpus once")

        corpus = _text(metadata.corpus[positions])
        corpora = Column.of(corpus)

        def column(name: str) -> pa.Array:
            return _text(getattr(metadata, name)[positions])

        def of_corpus(names: pa.Array) -> Column:
            apart = pc.if_else(pc.equal(names, ""), names, _with_corpus(corpus, names)) if len(corpora.names) > 1 else names
            return Column.of(apart)

        speaker = column("speaker")
        unknown = pc.equal(pc.utf8_lower(speaker), UNKNOWN_SPEAKER)
        return cls(
            classes=label_set.classes,
            positions=positions,
            target=targets[positions],
            key=key,
            corpus=corpora,
            speaker=of_corpus(pc.if_else(unknown, "", speaker)),
            session=of_corpus(column("session")),
            text=of_corpus(column("text_id")),
            sound=Column.of_repeated(_text(metadata.sound[positions])),
            gender=Column.of(column("gender")),
            split=Column.of(column("split")),
        )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def known(self) -> np.ndarray:
        """Mask of the clips whose speaker is known."""
        return self.speaker.codes >= 0


@dataclass(frozen=True, slots=True)
class Draft:
    """A fold before its check: the side of each clip, int8 (num_clips,), and training, dev and test in words."""

    side: np.ndarray
    words: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a protocol is asked for. `count`: of folds, None: what it makes by itself. No corpora: none are named."""

    count: int | None
    train_corpora: Sequence[str] = ()
    test_corpora: Sequence[str] = ()


def _text(values: np.ndarray | Texts) -> pa.Array:
    return values.arrow if isinstance(values, Texts) else pa.array(values, type=pa.large_string())


def _with_corpus(corpus: pa.Array, names: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(corpus, names, _SLASH)
