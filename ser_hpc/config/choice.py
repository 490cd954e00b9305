"""Define how a setting chooses a part by its `kind`: one of the package's, or `module:Class` from outside of it.

    Head = Annotated[HeadSettings, Choice(HeadSettings, MeanPoolSettings, MlpSettings)]

Each kind is a settings class; the room that builds the part has one builder for all of them. A class from outside derives from
the same base, adds settings of its own, and a method `build`.
"""

from __future__ import annotations

import difflib
from typing import Any, get_args, get_origin

from pydantic import GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from ser_hpc.config.extensions import import_outside, is_outside
from ser_hpc.config.section import Section
from ser_hpc.core.errors import listed


class Choice:
    """The kinds that a setting may have, the default first; `optional`: or none. Classes from outside derive from `base`."""

    def __init__(self, base: type[Section], *kinds: type[Section], optional: bool = False) -> None:
        self.base, self.optional = base, optional
        self.kinds = {kind.model_fields["kind"].default: kind for kind in kinds}

    def of(self, value: Any) -> type[Section]:
        """Return the settings class that a value asks for. Raises ValueError naming the kinds that there are."""
        default = next(iter(self.kinds), "")
        kind = value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", value)
        if kind in self.kinds:
            return self.kinds[kind]
        if is_outside(kind):
            return import_outside(kind, self.base)
        if not self.kinds:
            raise ValueError(f"there is no kind {kind!r}: write module:Class, from outside the package")
        near = difflib.get_close_matches(str(kind), self.kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {listed(list(self.kinds), 30)}"
        raise ValueError(f"there is no kind {kind!r}; {hint} (or module:Class, from outside the package)")

    def validate(self, value: Any) -> Section | None:
        """Return the settings that a value means: a section, a kind alone, or a kind with settings of its own."""
        if isinstance(value, self.base) or (value is None and self.optional):
            return value
        if isinstance(value, str):  # head: mlp
            value = {"kind": value}
        if not isinstance(value, dict):
            raise ValueError("write a kind, or {kind: ..., settings of its own}")
        return self.of(value).model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(
            lambda value: value.model_dump(mode="json") if isinstance(value, Section) else value
        )
        return core_schema.no_info_plain_validator_function(self.validate, serialization=written)


def sections_of(field: FieldInfo) -> list[type[Section]]:
    """List the settings classes of the package that a field may hold, or hold by name: the default kind first."""
    if choice := choice_of(field):
        return list(choice.kinds.values())
    return [field.annotation] if isinstance(field.annotation, type) and issubclass(field.annotation, Section) else []


def section_asked(field: FieldInfo, value: Any) -> type[Section] | None:
    """Return the settings class that a value written there asks for; None if it holds no section, or one that there is not."""
    try:
        return choice.of(value) if (choice := choice_of(field)) else next(iter(sections_of(field)), None)
    except ValueError:
        return None


def is_by_name(field: FieldInfo) -> bool:
    """Tell whether a field holds sections by name, as `tasks` does."""
    return get_origin(field.annotation) is dict and choice_of(field) is not None


def choice_of(field: FieldInfo) -> Choice | None:
    """Return how a field, or each of the sections that it holds by name, is chosen; None: it is not."""
    values = get_args(field.annotation)[-1:] if get_origin(field.annotation) is dict else ()
    found = [*field.metadata, *(each for value in values for each in getattr(value, "__metadata__", ()))]
    return next((each for each in found if isinstance(each, Choice)), None)
