"""Draw scores as dots with their intervals, a row each: of a run beside what is told without listening, of classes, of
speakers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ser_hpc.results.figures.scales import Scale
from ser_hpc.results.figures.shapes import NORMAL, WIDTH, Colour, Dot, Figure, Line, Shape, Text, cut, text_width, visible
from ser_hpc.results.markdown import format_bounds, format_score

_ROW, _TOP, _BOTTOM, _LABEL, _VALUE = 22.0, 22.0, 24.0, 134.0, 36.0


@dataclass(frozen=True, slots=True)
class Row:
    """A score in [0, 1] with its name; `others`: further values, shown faint (the seeds of a mean); `marked`: the row that the
    others are there for."""

    name: str
    value: float
    bounds: tuple[float, float] | None = None
    others: tuple[float, ...] = ()
    note: str = ""
    marked: bool = False


def dot_plot(title: str, rows: Sequence[Row], axis: str, chance: float | None = None) -> Figure:
    """Draw the rows from above, on an axis from 0 to 1 that `axis` names; `chance`: a line for what guessing scores."""
    left = min(_LABEL, max(text_width(visible(row.name), NORMAL) for row in rows) + 10)
    bottom = _TOP + _ROW * len(rows)
    across = Scale(0.0, 1.0, left + 6, WIDTH - _VALUE - 8)
    shapes: list[Shape] = []
    for tick in across.ticks():
        x = across(tick)
        shapes += [Line(((x, _TOP), (x, bottom))), Text(x, bottom + 13, f"{tick:g}", "middle", "muted")]
    if chance is not None:
        x = across(chance)
        shapes += [
            Line(((x, _TOP - 4), (x, bottom)), "ink", gap=True),
            Text(x, _TOP - 8, f"chance {chance:.3f}", "middle", "muted"),
        ]
    for number, row in enumerate(rows):
        shapes += _row(row, _TOP + _ROW * (number + 0.5), left, across)
    shapes += [Text(WIDTH, _TOP - 8, axis, "end", "muted")]
    return Figure(title, bottom + _BOTTOM, tuple(shapes))


def _row(row: Row, y: float, left: float, across: Scale) -> list[Shape]:
    colour: Colour = "two" if row.marked else "one"
    shapes: list[Shape] = [
        Text(left, y + 4, cut(row.name, left - 4, NORMAL), "end", size=NORMAL, bold=row.marked),
        Text(WIDTH, y + 4, format_score(row.value), "end", size=NORMAL, bold=row.marked),
    ]
    if math.isnan(row.value):
        return shapes
    if row.bounds:
        low, high = map(across, row.bounds)
        shapes += [Line(((low, y), (high, y)), colour, 2.0)]
        shapes += [Line(((x, y - 4), (x, y + 4)), colour, 2.0) for x in (low, high)]
    shapes += [Dot(across(value), y, 2.5, "muted", 0.7) for value in row.others if not math.isnan(value)]
    about = " ".join(filter(None, (visible(row.name), format_score(row.value), format_bounds(row.bounds), visible(row.note))))
    return [*shapes, Dot(across(row.value), y, 5.0, colour, diamond=row.marked, title=about)]
