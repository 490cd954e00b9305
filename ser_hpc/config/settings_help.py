"""List every setting with its default and meaning, for `--settings`: made from the settings classes, so it cannot drift."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from ser_hpc.config.settings import AcrnnModel, EncoderModel, ProbeSettings, Settings


def settings_help(width: int = 100) -> Iterator[str]:
    """Yield a heading per section; per setting a line, `path = default`, and what it means, broken at `width` columns."""
    for name, field in Settings.model_fields.items():
        if name == "model":
            yield from _section("model", EncoderModel, "  (kind: encoder)", width)
            yield from _section("model.head", ProbeSettings, "  (kind: probe)", width)
            yield from _section("model", AcrnnModel, "  (kind: acrnn)", width)
        elif isinstance(field.default, BaseModel):
            yield from _section(name, type(field.default), "", width)
        else:
            yield from _setting(name, list(field.default), field.description, width)


def _section(path: str, section: type[BaseModel], note: str, width: int) -> Iterator[str]:
    yield f"\n{path}{note}"
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _section(f"{path}.{name}", type(field.default), "", width)
        else:
            yield from _setting(f"{path}.{name}", field.default, field.description, width)


def _setting(path: str, default: Any, meaning: str | None, width: int) -> Iterator[str]:
    yield f"  {path} = {'none' if default is None else default}"
    if meaning:
        below = " " * 6
        text = " ".join(meaning.split())
        yield textwrap.fill(text, width, initial_indent=below, subsequent_indent=below, break_on_hyphens=False)
