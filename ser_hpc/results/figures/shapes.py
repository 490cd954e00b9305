"""Define what a figure is made of. Lengths are in CSS pixels (1/96 inch), y grows downwards.

A colour is the role that it plays, so that a page can be light or dark and a paper's figure is neither. Those that tell things
apart are of Okabe and Ito (2008), who chose them for all kinds of colour vision; shares are shades of one blue.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Colour = Literal["ink", "muted", "grid", "one", "two", "on_one"]
LIGHT: Mapping[Colour, str] = MappingProxyType(
    {"ink": "#1b1f24", "muted": "#57606a", "grid": "#d0d7de", "one": "#0072b2", "two": "#c04f00", "on_one": "#ffffff"}
)
DARK: Mapping[Colour, str] = MappingProxyType(
    {"ink": "#e6edf3", "muted": "#a3adb8", "grid": "#3a424b", "one": "#56b4e9", "two": "#f0a202", "on_one": "#0b0f14"}
)
WIDTH = 360.0  # of a figure: a phone's, or a column of a paper
SMALL, NORMAL = 11.0, 12.0  # sizes of text
_LETTER = 0.56  # mean width of a letter, in sizes


@dataclass(frozen=True, slots=True)
class Line:
    """A line through `points`; `gap` dashes it."""

    points: tuple[tuple[float, float], ...]
    colour: Colour = "grid"
    width: float = 1.0
    opacity: float = 1.0
    gap: bool = False


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle from its upper left corner; `title`: what is shown for it when pointed at."""

    x: float
    y: float
    width: float
    height: float
    colour: Colour = "one"
    opacity: float = 1.0
    title: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle, or a diamond, which is told from it without its colour."""

    x: float
    y: float
    radius: float = 4.0
    colour: Colour = "one"
    opacity: float = 1.0
    diamond: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text on its base line; `turned`: read upwards."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    colour: Colour = "ink"
    size: float = SMALL
    bold: bool = False
    turned: bool = False


Shape = Line | Box | Dot | Text


@dataclass(frozen=True, slots=True)
class Figure:
    """Shapes, those behind first; `title` says in words what is to be seen, for who cannot see it."""

    title: str
    height: float
    shapes: tuple[Shape, ...]
    width: float = WIDTH


def visible(text: str) -> str:
    """Write out what turns text around or hides in it (Unicode's Cf, as U+202E, and controls), so that a name of a corpus shows
    as what it is."""
    return "".join(f"\\u{ord(letter):04x}" if unicodedata.category(letter) in ("Cf", "Cc") else letter for letter in text)


def text_width(text: str, size: float = SMALL) -> float:
    """Estimate the width of text; wide letters (East Asian) count twice."""
    return size * _LETTER * sum(1.8 if unicodedata.east_asian_width(letter) in "WF" else 1.0 for letter in text)


def cut(text: str, width: float, size: float = SMALL) -> str:
    """Shorten text to a width, with an ellipsis in the place of what is cut."""
    text = visible(text)
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text}…"
