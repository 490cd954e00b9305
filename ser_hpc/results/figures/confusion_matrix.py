"""Draw a confusion matrix: shares of the true class as shades, with the counts that they rest on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ser_hpc.results.figures.shapes import SMALL, WIDTH, Box, Colour, Figure, Shape, Text, cut, text_width, visible

_TOP, _GAP, _LABEL = 18.0, 1.0, 92.0
_COUNTS_FROM, _SHARES_FROM = 30.0, 19.0  # widths of a cell in which counts, and shares, can be read
_DARK = 0.55  # share from which on a shade is dark


def confusion_matrix(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw counts (C, C), true by predicted: each cell's share of its row in percent, and its count below."""
    left = min(_LABEL, max(text_width(visible(name)) for name in classes) + 20)
    cell = min(56.0, (WIDTH - left) / len(classes))
    totals = confusion.sum(1)
    below = _TOP + cell * len(classes)
    heads = min(_LABEL, max(text_width(visible(name)) for name in classes))
    turned = heads > cell - 2
    shapes: list[Shape] = [
        Text(left + cell * len(classes) / 2, below + (heads + 24 if turned else 32), "predicted", "middle", "muted"),
        Text(10, _TOP + cell * len(classes) / 2, "true", "middle", "muted", turned=True),
    ]
    for i, name in enumerate(classes):
        middle = cell * (i + 0.5)
        shapes += [Text(left - 5, _TOP + middle + 4, cut(name, left - 20), "end")]
        x = left + middle
        shapes += [
            Text(x + 4, below + 8, cut(name, heads), "end", turned=True)
            if turned
            else Text(x, below + 15, visible(name), "middle")
        ]
        for j, other in enumerate(classes):
            share = float(confusion[i, j] / totals[i]) if totals[i] else 0.0
            about = f"{visible(name)}, predicted {visible(other)}: {confusion[i, j]} of {totals[i]}"
            shapes += _cell(left + cell * j, _TOP + cell * i, cell, share, int(confusion[i, j]), about)
    title = "Confusion matrix, percent of the true class: " + "; ".join(
        f"{name} {confusion[i, i]} of {totals[i]} right" for i, name in enumerate(classes)
    )
    return Figure(visible(title), below + (heads + 30 if turned else 38), tuple(shapes))


def _cell(x: float, y: float, size: float, share: float, count: int, about: str) -> list[Shape]:
    inner = round(size - _GAP, 2)
    ground = Box(round(x, 2), round(y, 2), inner, inner, "grid", 0.35)
    shapes: list[Shape] = [ground, Box(round(x, 2), round(y, 2), inner, inner, "one", round(share, 2), about)]
    colour: Colour = "on_one" if share >= _DARK else "ink"
    middle = round(x + inner / 2, 2)
    if size >= _COUNTS_FROM:
        shapes += [Text(middle, round(y + size / 2, 2), f"{100 * share:.0f}", "middle", colour, bold=share >= _DARK)]
        shapes += [Text(middle, round(y + size / 2 + 12, 2), str(count), "middle", colour, SMALL - 2)]
    elif size >= _SHARES_FROM and count:
        shapes += [Text(middle, round(y + size / 2 + 3.5, 2), f"{100 * share:.0f}", "middle", colour, SMALL - 2)]
    return shapes
