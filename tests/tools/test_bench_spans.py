"""The bench of scaling splits a step's time with three operations on spans: they are those of sets of instants."""

from __future__ import annotations

from bench.scaling import Span, common, length, union, without
from hypothesis import given
from hypothesis import strategies as st

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)).map(lambda pair: (float(pair[0]), float(sum(pair)))))


def instants(spans: list[Span]) -> set[float]:
    return {at + 0.5 for begin, end in spans for at in range(int(begin), int(end))}


@given(SPANS, SPANS)
def test_spans_are_sets_of_instants(some: list[Span], others: list[Span]) -> None:
    a, b = union(some), union(others)
    assert instants(a) == instants(some)
    assert instants(common(a, b)) == instants(a) & instants(b)
    assert instants(without(a, b)) == instants(a) - instants(b)
    assert length(a) == len(instants(a)) == length(common(a, b)) + length(without(a, b))
