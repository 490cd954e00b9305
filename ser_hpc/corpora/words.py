"""Columns of words that many clips share, as numbers: ten million clips need a byte or two each, in memory or a mapped file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


class WordColumn:
    """A column of words, read like a numpy object array of str: row i has `names[codes[i]]`.

    `column[3]` is a word; `column[positions]`, `column[a:b]` and `column[mask]` are object arrays; `column == word` is a mask.
    `codes`: integers of any width, (num_clips,); `names`: object array of str, all different. These are made of `words`, an
    array of them or Arrow's, when they are first asked for: a field of `extra` may have one for each clip.
    """

    __slots__ = ("_names", "_words", "codes")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, words: Any, codes: np.ndarray) -> None:
        self._words, self.codes = words, codes
        self._names: np.ndarray | None = words if isinstance(words, np.ndarray) else None

    @classmethod
    def of(cls, values: Sequence[str] | np.ndarray | WordColumn) -> WordColumn:
        """Make a column of words, one a clip; one that is a column already is returned."""
        if isinstance(values, cls):
            return values
        numbers: dict[str, int] = {}
        codes = np.fromiter((numbers.setdefault(word, len(numbers)) for word in values), np.int32, len(values))
        return cls(np.array([*numbers], dtype=object), codes)

    @classmethod
    def join(cls, first: WordColumn, second: WordColumn) -> WordColumn:
        """Make a column of pairs of words, joined by a slash; only those that occur."""
        pair = first.codes.astype(np.int64) * len(second.names) + second.codes
        size = len(first.names) * len(second.names)
        if size > 8 * len(pair) + (1 << 20):  # mostly pairs that do not occur
            found, codes = np.unique(pair, return_inverse=True)
        else:
            occurs = np.zeros(size, dtype=bool)
            occurs[pair] = True
            found, codes = np.flatnonzero(occurs), (np.cumsum(occurs, dtype=np.int32) - 1)[pair]
        ones, others = first.names[found // len(second.names)], second.names[found % len(second.names)]
        return cls(np.array([f"{one}/{other}" for one, other in zip(ones, others, strict=True)], dtype=object), codes)

    @property
    def names(self) -> np.ndarray:
        """The different words, object array of str."""
        names = self._names
        if names is None:
            self._names = names = np.array(self._words.to_pylist(), dtype=object)
        return names

    def rename(self, rule: Callable[[str], str]) -> WordColumn:
        """Return the column with `rule(word)` in place of each word."""
        renamed = [rule(name) for name in self.names.tolist()]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(renamed))}
        codes = self.codes
        if len(numbers) < len(renamed):
            codes = np.array([numbers[name] for name in renamed], dtype=np.int32)[codes]
        return WordColumn(np.array([*numbers], dtype=object), codes)

    def take(self, rows: Any) -> WordColumn:
        """Return the column of some rows (positions, a mask or a slice)."""
        return WordColumn(self._words if self._names is None else self._names, self.codes[rows])

    def to_arrow(self) -> Any:
        """Return the words as a pyarrow array of large strings, one a row."""
        import pyarrow as pa  # takes a tenth of a second: reports and status pages do without

        words = self._words if self._names is None else pa.array(self._names, pa.large_string())
        return words.take(pa.array(self.codes))

    def occurring(self) -> list[str]:
        """Return the words that at least one row has, sorted."""
        occurs = np.zeros(len(self.names), dtype=bool)
        occurs[self.codes] = True
        return sorted(self.names[occurs].tolist())

    def number(self) -> tuple[list[str], np.ndarray]:
        """Return the words that at least one row has, sorted, and for each row the number of its word, int64 (num_clips,)."""
        words = self.occurring()
        number_of = {word: number for number, word in enumerate(words)}
        numbers = np.array([number_of.get(word, -1) for word in self.names.tolist()], dtype=np.int64)
        return words, numbers[self.codes]

    def tolist(self) -> list[str]:
        """Return the words as a list, one a row."""
        words: list[str] = self[:].tolist()
        return words

    def astype(self, dtype: Any) -> np.ndarray:
        """Return the words as a numpy array of another type."""
        words: np.ndarray = self[:].astype(dtype)
        return words

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Any:
        return self.names[self.codes[rows]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        words: np.ndarray = self[:]
        return words if dtype is None else words.astype(dtype)

    def __eq__(self, other: Any) -> Any:
        if isinstance(other, str):
            return (self.names == other)[self.codes]
        return self[:] == np.asarray(other)

    def __ne__(self, other: Any) -> Any:
        return ~(self == other)
