"""Define the base class of all sections of the settings (frozen, unknown keys refused), and types of their fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


def _as_tuple(value: Any) -> Any:
    """Turn one string into a tuple of one, and None into an empty one."""
    return (value,) if isinstance(value, str) else () if value is None else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
