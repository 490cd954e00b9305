"""Format the pieces of a report: Markdown tables that are aligned as plain text too, lists, numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Format a Markdown table with padded cells; columns are right-aligned except those in `left`."""
    cells = [[one_line(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    pad = [str.ljust if i in left else str.rjust for i in range(len(widths))]
    rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [[pad[i](cell, widths[i]) for i, cell in enumerate(row)] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:]))


def bullets(items: Iterable[str]) -> str:
    """Format a Markdown list, an item a line."""
    return "\n".join(f"- {one_line(item)}" for item in items)


def one_line(text: str) -> str:
    """Replace line breaks and runs of blanks by single blanks."""
    return " ".join(text.split())


def format_score(value: float) -> str:
    """Format three decimals, a dash if undefined. Scores that differ by the order of sums alone look alike: 0.9525 each."""
    return "-" if math.isnan(value) else f"{round(value, 9):.3f}"


def format_bounds(bounds: tuple[float, float] | None) -> str:
    """Format an interval, nothing where there is none."""
    return f"[{format_score(bounds[0])}, {format_score(bounds[1])}]" if bounds else ""


def shorten_names(names: Sequence[str]) -> list[str]:
    """Cut names to column heads: the fewest letters, three or more, that still tell them apart."""
    assert len(set(names)) == len(names)
    length = 3
    while len({name[:length] for name in names}) < len(names):
        length += 1
    return [name[:length] for name in names]
