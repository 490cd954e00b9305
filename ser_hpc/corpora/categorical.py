"""Encode a column of text as integers once, in Arrow, so that folds and checks are arithmetic on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Categorical:
    """A column of names as integers: row i has `names[codes[i]]`, or none where its code is -1. `codes`: int32 (num_clips,)."""

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def from_arrow(cls, values: pa.Array) -> Categorical:
        """Encode a column of text; names are sorted, empty values have no code."""
        encoded = values.dictionary_encode()
        order = pc.sort_indices(encoded.dictionary).to_numpy()
        names = encoded.dictionary.take(order).to_pylist()
        empty = int(names[:1] == [""])
        code = np.empty(len(order), dtype=np.int32)
        code[order] = np.arange(len(names)) - empty
        return cls(tuple(names[empty:]), code[encoded.indices.to_numpy()])

    @classmethod
    def from_repeated(cls, values: pa.Array) -> Categorical:
        """Encode only values that occur more than once: a table of ten million different ones would take gigabytes."""
        parts = (values[start : start + _AT_ONCE].to_pylist() for start in range(0, len(values), _AT_ONCE))
        hashes = np.concatenate([np.fromiter(map(hash, part), np.int64, len(part)) for part in parts])
        ordered = np.sort(hashes)
        rows = np.flatnonzero(np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]]))
        some = cls.from_arrow(values.take(pa.array(rows)))
        counts = np.bincount(some.codes[some.codes >= 0], minlength=len(some.names))
        code = np.where(counts > 1, np.cumsum(counts > 1) - 1, -1).astype(np.int32)  # hashes may meet by chance
        codes = np.full(len(values), -1, dtype=np.int32)
        codes[rows] = np.where(some.codes >= 0, code[some.codes], -1) if len(rows) else -1
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
