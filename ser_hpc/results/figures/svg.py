"""Write a figure as SVG: on a page, which gives colours their meaning, or as a file with colours of its own."""

from __future__ import annotations

from html import escape

from ser_hpc.results.figures.shapes import LIGHT, Box, Dot, Figure, Line, Shape, Text

_FONT = "font-family:'Helvetica Neue',Arial,'Liberation Sans',sans-serif"


def to_svg(figure: Figure) -> str:
    """Return an `svg` element; colours are classes (`fill-one`, `line-grid`), which the page's style sheet defines."""
    size = f'viewBox="0 0 {figure.width:g} {figure.height:g}"'
    shapes = "".join(map(_shape, figure.shapes))
    return f'<svg {size} role="img" aria-label="{escape(figure.title)}">{shapes}</svg>'


def to_svg_file(figure: Figure) -> str:
    """Return the content of an SVG file, for print: dark on white."""
    rules = "".join(f".fill-{role}{{fill:{colour}}}.line-{role}{{stroke:{colour}}}" for role, colour in LIGHT.items())
    style = f"<style>{rules}polyline{{fill:none}}text{{{_FONT}}}</style>"
    size = f'xmlns="http://www.w3.org/2000/svg" width="{figure.width:g}" height="{figure.height:g}"'
    head, inner = to_svg(figure).split(">", 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head.replace("<svg", f"<svg {size}", 1)}>{style}{inner}\n'


def _shape(shape: Shape) -> str:
    match shape:
        case Line():
            points = " ".join(f"{x:g},{y:g}" for x, y in shape.points)
            dashes = ' stroke-dasharray="4 3"' if shape.gap else ""
            width = f' stroke-width="{shape.width:g}"' if shape.width != 1 else ""
            return f'<polyline class="line-{shape.colour}"{_opacity(shape.opacity)}{width}{dashes} points="{points}"/>'
        case Box():
            box = f'x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" height="{shape.height:g}"'
            return _titled("rect", shape, box)
        case Dot(diamond=True):
            x, y, r = shape.x, shape.y, shape.radius * 1.25
            return _titled("path", shape, f'd="M{x:g} {y - r:g}L{x + r:g} {y:g}L{x:g} {y + r:g}L{x - r:g} {y:g}Z"')
        case Dot():
            return _titled("circle", shape, f'cx="{shape.x:g}" cy="{shape.y:g}" r="{shape.radius:g}"')
        case Text():
            return _text(shape)


def _titled(name: str, shape: Box | Dot, place: str) -> str:
    start = f'<{name} class="fill-{shape.colour}"{_opacity(shape.opacity)} {place}'
    return f"{start}><title>{escape(shape.title)}</title></{name}>" if shape.title else f"{start}/>"


def _text(shape: Text) -> str:
    anchor = f' text-anchor="{shape.anchor}"' if shape.anchor != "start" else ""
    bold = ' font-weight="600"' if shape.bold else ""
    turned = f' transform="rotate(-90 {shape.x:g} {shape.y:g})"' if shape.turned else ""
    place = f'x="{shape.x:g}" y="{shape.y:g}" font-size="{shape.size:g}"'
    return f'<text class="fill-{shape.colour}" {place}{anchor}{bold}{turned}>{escape(shape.text)}</text>'


def _opacity(value: float) -> str:
    return "" if value == 1 else f' opacity="{value:.2g}"'
