"""Define how a setting chooses a part by its `kind`: one of the package's, or `module:Class` from outside of it.

    Head = Annotated[HeadSettings, Choice(HeadSettings, MeanPoolSettings, MlpSettings)]

Each kind is a settings class; the room that builds the part has one builder for all of them. A class from outside derives from
the same base, adds settings of its own, and a method `build`.
"""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ser_hpc.config.extensions import import_outside, is_outside
from ser_hpc.config.section import Section
from ser_hpc.core.errors import listed


class Choice:
    """The kinds that a setting may have, the default first. `base`: what classes from outside derive from."""

    def __init__(self, base: type[Section], *kinds: type[Section]) -> None:
        self.base = base
        self.kinds = {kind.model_fields["kind"].default: kind for kind in kinds}

    def of(self, value: Any) -> type[Section]:
        """Return the settings class that a value asks for. Raises ValueError naming the kinds that there are."""
        default = next(iter(self.kinds))
        kind = value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", value)
        if kind in self.kinds:
            return self.kinds[kind]
        if is_outside(kind):
            return import_outside(kind, self.base)
        near = difflib.get_close_matches(str(kind), self.kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {listed(list(self.kinds), 30)}"
        raise ValueError(f"there is no kind {kind!r}; {hint} (or module:Class, from outside the package)")

    def _validate(self, value: Any) -> Section:
        if isinstance(value, self.base):
            return value
        if isinstance(value, str):  # head: mlp
            value = {"kind": value}
        if not isinstance(value, dict):
            raise ValueError(f"write a kind, as {next(iter(self.kinds))}, or {{kind: ..., settings of its own}}")
        return self.of(value).model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(lambda section: section.model_dump(mode="json"))
        return core_schema.no_info_plain_validator_function(self._validate, serialization=written)
