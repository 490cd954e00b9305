"""Write a figure as PDF by matplotlib, which embeds its fonts, as publishers ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.core.errors import UserError
from ser_hpc.results.figures.shapes import LIGHT, Box, Dot, Figure, Line, Shape, Text

_PIXELS, _POINTS = 96, 72  # an inch


def write_pdf(path: Path, figure: Figure) -> None:
    """Write a whole PDF, or leave the old one; the same figure gives the same bytes. Raises UserError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise UserError(f"PDF needs matplotlib ({error}): pip install 'ser_hpc[figures]'") from None
    size = (figure.width / _PIXELS, figure.height / _PIXELS)
    with matplotlib.rc_context({"pdf.fonttype": 42, "font.family": "DejaVu Sans"}):
        canvas = Canvas(figsize=size)
        axes = canvas.add_axes((0, 0, 1, 1), xlim=(0, figure.width), ylim=(figure.height, 0))
        axes.set_axis_off()
        for shape in figure.shapes:
            _draw(axes, shape)
        with write_aside(path) as temporary:
            canvas.savefig(temporary, format="pdf", metadata={"Title": figure.title, "CreationDate": None})


def _draw(axes: Any, shape: Shape) -> None:
    from matplotlib import patches

    colour, scale = LIGHT[shape.colour], _POINTS / _PIXELS
    match shape:
        case Line():
            dashes = (0, (4 * scale, 3 * scale)) if shape.gap else "solid"
            axes.plot(*zip(*shape.points, strict=True), color=colour, lw=shape.width * scale, alpha=shape.opacity, ls=dashes)
        case Box():
            place = (shape.x, shape.y), shape.width, shape.height
            axes.add_patch(patches.Rectangle(*place, facecolor=colour, alpha=shape.opacity, lw=0))
        case Dot():
            where = (shape.x, shape.y)
            diamond = patches.RegularPolygon(where, 4, radius=shape.radius * 1.25)
            mark: Any = diamond if shape.diamond else patches.Circle(where, shape.radius)
            mark.set(facecolor=colour, alpha=shape.opacity, lw=0)
            axes.add_patch(mark)
        case Text():
            anchor = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
            turn = {"ha": anchor, "va": "baseline", "rotation": 90 if shape.turned else 0, "rotation_mode": "anchor"}
            font = {"fontsize": shape.size * scale, "weight": "bold" if shape.bold else "normal", "parse_math": False}
            axes.text(shape.x, shape.y, shape.text, color=colour, **font, **turn)
