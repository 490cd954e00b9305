"""Every setting with its default and meaning, for `--settings`: made from the settings classes, so it cannot drift."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from ser_hpc.config.settings import AcrnnModel, EncoderModel, Settings


def lines() -> Iterator[str]:
    """A heading per section, and two lines per setting: `path = default`, and what it means."""
    for name, field in Settings.model_fields.items():
        if name == "model":
            yield from _section("model", EncoderModel, "  (kind: encoder)")
            yield from _section("model", AcrnnModel, "  (kind: acrnn)")
        elif isinstance(field.default, BaseModel):
            yield from _section(name, type(field.default), "")
        else:
            yield from _setting(name, list(field.default), field.description)


def _section(path: str, section: type[BaseModel], note: str) -> Iterator[str]:
    yield f"\n{path}{note}"
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _section(f"{path}.{name}", type(field.default), "")
        else:
            yield from _setting(f"{path}.{name}", field.default, field.description)


def _setting(path: str, default: Any, meaning: str | None) -> Iterator[str]:
    yield f"  {path} = {'none' if default is None else default}"
    if meaning:
        yield textwrap.indent(meaning, "      ")
