"""Encode a column of text as integers once, so that folds and checks are arithmetic on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ser_hpc.corpora.text_order import text_hashes
from ser_hpc.corpora.words import WordColumn


@dataclass(frozen=True, slots=True)
class Categorical:
    """A column of names as integers: row i has `names[codes[i]]`, or none where its code is -1. `codes`: int32 (num_clips,)."""

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def from_words(cls, words: WordColumn) -> Categorical:
        """Encode a column of words; names are sorted, empty values have no code, and names that no row has are left out."""
        names = tuple(name for name in words.occurring() if name)
        number = {name: code for code, name in enumerate(names)}
        code = np.array([number.get(name, -1) for name in words.names.tolist()], dtype=np.int32)
        return cls(names, code[words.codes])

    @classmethod
    def from_repeated(cls, values: pa.LargeStringArray, rows: np.ndarray) -> Categorical:
        """Encode those of `rows` (int array), in their order, whose text occurs in them more than once; others have no code.

        A table of ten million different texts would take gigabytes.
        """
        hashes = text_hashes(values)[rows]
        ordered = np.sort(hashes)
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        codes = np.full(len(rows), -1, dtype=np.int32)
        if not len(twice):
            return cls((), codes)
        del ordered
        found = np.flatnonzero(twice[np.minimum(np.searchsorted(twice, hashes), len(twice) - 1)] == hashes)
        some = cls.from_words(WordColumn.of(values.take(pa.array(rows[found])).to_pylist()))
        counts = np.bincount(some.codes[some.codes >= 0], minlength=len(some.names))
        code = np.where(counts > 1, np.cumsum(counts > 1) - 1, -1).astype(np.int32)  # hashes may meet by chance
        codes[found] = np.where(some.codes >= 0, code[some.codes], -1) if len(code) else -1
        return cls(tuple(name for name, count in zip(some.names, counts, strict=True) if count > 1), codes)

    def names_in(self, rows: np.ndarray) -> tuple[str, ...]:
        """Return the names that occur in `rows` (a mask or positions), sorted."""
        present = np.zeros(len(self.names) + 1, dtype=bool)
        present[self.codes[rows]] = True  # rows without a name: the last place
        return tuple(self.names[code] for code in np.flatnonzero(present[:-1]))

    def equals(self, name: str) -> np.ndarray:
        """Return a mask of the rows that have this name."""
        mask: np.ndarray = self.codes == (self.names.index(name) if name in self.names else len(self.names))
        return mask
