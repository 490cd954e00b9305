"""Columns as integers say what columns of Python's words say."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ser_hpc.corpora.categorical import Categorical
from ser_hpc.corpora.text_order import sort_words, sorted_order, text_hashes
from ser_hpc.corpora.utterance import TextColumn
from ser_hpc.corpora.words import WordColumn

words = st.lists(st.sampled_from(["", "a", "A", "b/a", "a/", "ü", "unknown", "zz"]), min_size=1, max_size=30)
texts = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20), max_size=30)


@given(words, st.data())
def test_a_column_is_read_like_an_array(rows: list[str], data: st.DataObject) -> None:
    column, array = WordColumn.of(rows), np.array(rows, dtype=object)
    some = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    for which in (np.array(some, dtype=np.int64), mask, slice(1, 4)):
        assert column[which].tolist() == column.take(which).tolist() == array[which].tolist()
    assert column[0] == rows[0] and column.tolist() == [*column] == rows and len(column) == len(rows)
    np.testing.assert_array_equal(column, array)
    for word in ("a", "nobody"):
        assert (column == word).tolist() == (array == word).tolist() and (column != word).tolist() == (array != word).tolist()
    assert column.occurring() == sorted(set(rows)) and column.to_arrow().to_pylist() == rows
    assert column.rename(str.lower).tolist() == [word.lower() for word in rows]
    names, numbers = column.take(mask).number()
    assert [names[number] for number in numbers] == array[mask].tolist() and names == sorted(set(array[mask]))
    known = Categorical.from_words(column)
    assert [known.names[code] if code >= 0 else "" for code in known.codes] == rows
    assert known.names == tuple(sorted(set(rows) - {""}))


@given(words, st.data())
def test_pairs_are_joined_by_a_slash(rows: list[str], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.sampled_from("xyz"), min_size=len(rows), max_size=len(rows)))
    joined = WordColumn.join(WordColumn.of(rows), WordColumn.of(others))
    assert joined.tolist() == [f"{one}/{other}" for one, other in zip(rows, others, strict=True)]


def test_pairs_of_many_words_need_no_table_of_all() -> None:
    names = [f"n{i}" for i in range(5000)]
    joined = WordColumn.join(WordColumn.of(names), WordColumn.of(names[::-1]))
    assert joined.tolist() == [f"{one}/{other}" for one, other in zip(names, names[::-1], strict=True)]


@given(texts, st.data())
def test_texts_sort_and_repeat_as_python_says(rows: list[str], data: st.DataObject) -> None:
    """Bytes of UTF-8 sort as code points do; texts may lie in the middle of a larger column."""
    column = pa.array(["before", *rows, "after"], pa.large_string()).slice(1, len(rows))
    first = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows))), dtype=np.int32)
    order, same = sorted_order(sort_words(column, first, 3))
    found = [(int(first[row]), rows[row]) for row in order]
    assert found == sorted(zip(first.tolist(), rows, strict=True))
    assert same.tolist() == [one == other for one, other in pairwise(found)]
    chosen = np.array(data.draw(st.permutations(range(len(rows)))), dtype=np.int64)[: len(rows) // 2 + 1]
    counts = Counter(rows[row] for row in chosen)
    repeated = Categorical.from_repeated(column, chosen)
    given_names = [repeated.names[code] if code >= 0 else "" for code in repeated.codes]
    assert given_names == [rows[row] if counts[rows[row]] > 1 else "" for row in chosen]
    assert repeated.names == tuple(sorted(name for name, count in counts.items() if count > 1 and name))


@pytest.mark.parametrize("length", [8, 32])
def test_hashes_of_equal_length_are_of_the_whole_text(length: int) -> None:
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice([*"ab"], length)) for _ in range(60)]
    hashes = text_hashes(pa.array([*rows, *rows], pa.large_string())).tolist()
    assert hashes[:60] == hashes[60:] and len(set(hashes)) == len(set(rows))


def test_texts_of_a_column_are_kept_as_they_are() -> None:
    column = TextColumn.of(["a", "", "ü"])
    assert TextColumn.of(column) is column and column.tolist() == ["a", "", "ü"]
