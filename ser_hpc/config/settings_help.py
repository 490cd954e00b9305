"""List every setting with its default and meaning, for `--settings`: made from the settings classes, so it cannot drift."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

from pydantic.fields import FieldInfo

from ser_hpc.config.choice import choice_of, is_by_name, sections_of
from ser_hpc.config.section import Section
from ser_hpc.config.settings import Settings


def settings_help(width: int = 100) -> Iterator[str]:
    """Yield a heading per section; per setting a line, `path = default`, and what it means, broken at `width` columns."""
    listed: dict[type[Section], str] = {}
    for name, field in Settings.model_fields.items():
        yield from _field(name, field, width, listed)


def _field(path: str, field: FieldInfo, width: int, listed: dict[type[Section], str]) -> Iterator[str]:
    """Yield a setting, or the section that the field holds; of one that is chosen by its kind all kinds, the first time."""
    choice = choice_of(field)
    if not sections_of(field):
        yield from _setting(path, field, width)
    elif choice and choice.base in listed:
        yield f"\n{path}  (kinds as of {listed[choice.base]})"
    else:
        path = f"{path}.NAME" if is_by_name(field) else path
        if choice:
            listed[choice.base] = path
            if field.description:
                yield f"\n{path}"
                yield _wrapped(field.description, width, 6)
        for section in sections_of(field):
            yield from _section(path, section, width, listed, of_kind=choice is not None)
        if choice:
            yield f"\n{path}  (kind: module:Class)"
            yield _wrapped("From outside the package: see docs/extending.md.", width, 2)


def _section(
    path: str, section: type[Section], width: int, listed: dict[type[Section], str], *, of_kind: bool
) -> Iterator[str]:
    yield f"\n{path}  (kind: {section.model_fields['kind'].default})" if of_kind else f"\n{path}"
    if of_kind:
        yield _wrapped(inspect.cleandoc(section.__doc__ or ""), width, 2)
    for name, field in sorted(section.model_fields.items(), key=lambda item: bool(sections_of(item[1]))):
        yield from _field(f"{path}.{name}", field, width, listed)


def _setting(path: str, field: FieldInfo, width: int) -> Iterator[str]:
    default = field.default
    shown = "none" if default is None else list(default) if isinstance(default, tuple) else default
    yield f"  {path}" if field.is_required() else f"  {path} = {shown}"
    if field.description:
        yield _wrapped(field.description, width, 6)


def _wrapped(text: str, width: int, indent: int) -> str:
    below = " " * indent
    return textwrap.fill(" ".join(text.split()), width, initial_indent=below, subsequent_indent=below, break_on_hyphens=False)
