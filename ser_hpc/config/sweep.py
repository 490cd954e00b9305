"""Read what a sweep searches, a YAML file of settings with their values or ranges; all mistakes at once, before any start.

method: random                                        # grid, random or optuna
configurations: 60                                    # how many; of a grid all, if not given
settings:
  train.lr: {min: 1e-4, max: 1e-2, scale: log}        # whole numbers where min and max are, and in steps of `step`
  model.head: [{kind: mlp, hidden: [64]}, mean_pool]  # values, each as it would stand in the settings
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from ser_hpc.config.load import load_settings, read_yaml
from ser_hpc.config.schema import changes_result
from ser_hpc.config.section import Positive, Section
from ser_hpc.core.errors import ConfigError

Point = Mapping[str, Any]  # a value of each setting that is searched
_NOT_COMPARABLE = ("folds", "data.labels", "data.shards", "train.select_by")
_MESSAGES = {
    "extra_forbidden": "unknown key",
    "missing": "is not given",
    "tuple_type": "give a list of values, or a range as {min: 1e-4, max: 1e-2, scale: log}",
    "too_short": "the list is empty",
}
_DRAWS = 1000  # in a row that gave nothing new: then a space of few points is taken to be exhausted


class Range(Section):
    """Numbers from `min` to `max`, both included."""

    min: int | float
    max: int | float
    scale: Literal["linear", "log"] = "linear"
    """How they are drawn, and divided."""
    step: int | float | None = None
    """Only `min`, `min + step` ...; a grid needs it, or `points`."""
    points: Annotated[int, Field(ge=2)] | None = None
    """A grid's number of points, with both ends."""

    @model_validator(mode="after")
    def _something_in_it(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"the range is empty: min {self.min:g} is above max {self.max:g}")
        if self.scale == "log" and self.min <= 0:
            raise ValueError(f"scale: log needs numbers above zero, and min is {self.min:g}")
        if self.step is not None and (self.step <= 0 or self.scale == "log" or self.points is not None):
            raise ValueError("step is above zero, and goes neither with scale: log nor with points")
        return self

    @property
    def is_whole(self) -> bool:
        """Tell whether only whole numbers are meant."""
        return all(isinstance(value, int) for value in (self.min, self.max, self.step or 0))

    def grid(self) -> list[int | float]:
        """Return its points; it has `step` or `points`."""
        if self.step is not None:
            return [
                self._rounded(self.min + i * self.step) for i in range(math.floor((self.max - self.min) / self.step + 1e-9) + 1)
            ]
        assert self.points is not None
        return list(dict.fromkeys(self._at(i / (self.points - 1)) for i in range(self.points)))

    def draw(self, generator: random.Random) -> int | float:
        """Draw one number."""
        return generator.choice(self.grid()) if self.step is not None else self._at(generator.random())

    def _at(self, part: float) -> int | float:
        low, high = (math.log(self.min), math.log(self.max)) if self.scale == "log" else (self.min, self.max)
        value = low + part * (high - low)
        value = math.exp(value) if self.scale == "log" else value
        return self._rounded(min(max(value, self.min), self.max))

    def _rounded(self, value: float) -> int | float:
        """Round to whole numbers or to six digits, which is what a table can show and a person can type."""
        return round(value) if self.is_whole else float(f"{value:.6g}")


Values = Annotated[tuple[Any, ...], Field(min_length=1)]
Searched = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Values, Tag("values")],
    Discriminator(lambda value: "range" if isinstance(value, dict | Range) else "values"),
]


_SEARCHED: TypeAdapter[Range | tuple[Any, ...]] = TypeAdapter(Searched)


class SweepSettings(Section):
    method: Literal["grid", "random", "optuna"]
    """`grid`: every combination; `random`: drawn evenly; `optuna`: by its TPE sampler, from the dev scores so far."""
    configurations: Positive | None = None
    """How many are looked at; a grid's default is all. More of them later go on with the same sweep."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of what is drawn."""
    prune: bool = False
    """Folds are trained one after another, and a configuration that is below the median of the others over the same folds is
    not gone on with (once five others have come so far)."""
    settings: dict[str, Searched]
    """What is searched: a setting's path to its values or its range."""

    @model_validator(mode="after")
    def _that_ends(self) -> Self:
        if not self.settings:
            raise ValueError("settings is empty: name at least one setting, with a list of values or {min: ..., max: ...}")
        if self.method != "grid" and self.configurations is None:
            raise ValueError(f"configurations is not given: how many is method: {self.method} to look at?")
        return self

    @model_validator(mode="after")
    def _grid_of_points(self) -> Self:
        open_ones = [
            name
            for name, each in self.settings.items()
            if isinstance(each, Range) and each.step is None and each.points is None
        ]
        if self.method == "grid" and open_ones:
            raise ValueError(f"settings.{open_ones[0]}: a grid needs points (how many) or step here, or a list of values")
        return self

    @property
    def limit(self) -> int:
        """Return how many configurations are looked at, at most."""
        whole = math.prod(len(_values(each)) for each in self.settings.values()) if self.method == "grid" else math.inf
        return int(min(whole, self.configurations or math.inf))

    def points(self) -> Iterator[Point]:
        """Yield a grid's points, or random ones without repetition until there are no more, always in the same order."""
        if self.method == "grid":
            for values in product(*(_values(each) for each in self.settings.values())):
                yield dict(zip(self.settings, values, strict=True))
            return
        generator, seen, in_vain = random.Random(self.seed), set[str](), 0
        while in_vain < _DRAWS:
            point = {name: _draw(each, generator) for name, each in self.settings.items()}
            in_vain = in_vain + 1 if (key := json.dumps(point)) in seen else 0
            seen.add(key)
            if not in_vain:
                yield point

    def point(self, number: int) -> Point | None:
        """Return the point of that number, from 0; None: there are fewer."""
        return next(islice(self.points(), number, None), None)


def read_sweep(path: Path, file: Path | None, overrides: Sequence[str]) -> SweepSettings:
    """Read what is searched, over the settings of `file` and `overrides`. Raises ConfigError with every mistake: of its own;
    settings and values that there are not, with the first values of the others; what two places say; what cannot be compared.
    """
    tree, problems = read_yaml(path), dict[str, None]()
    sweep: SweepSettings | None = None
    try:
        sweep = SweepSettings.model_validate(tree)
    except ValidationError as error:
        problems |= dict.fromkeys(f"{path.name}: {problem}" for problem in _problems(error))
    searched = tree.get("settings")
    readable = dict(_readable(searched)) if isinstance(searched, dict) else {}
    problems |= dict.fromkeys(_refused(readable, file, overrides))
    if problems or sweep is None:
        raise ConfigError(list(problems))
    return sweep


def _readable(searched: dict[str, Any]) -> Iterator[tuple[str, Range | tuple[Any, ...]]]:
    """Yield the settings whose values or range can be read."""
    for name, each in searched.items():
        with suppress(ValidationError):
            yield name, _SEARCHED.validate_python(each)


def _refused(searched: Mapping[str, Range | tuple[Any, ...]], file: Path | None, overrides: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with values: each is tried, and both ends of a range."""
    given = {override.partition("=")[0] for override in overrides}
    known = {}
    for name, each in searched.items():
        if (why := _why_not(name, given)) is not None:
            yield f"settings.{name}: {why}"
        else:
            known[name] = _ends(each)
    first = {name: values[0] for name, values in known.items()}
    for name, values in known.items():
        for value in values:
            try:
                load_settings(file, [*overrides, *as_overrides({**first, name: value})])
            except ConfigError as error:
                yield from error.problems


def first_point(sweep: SweepSettings) -> Point:
    """Return the first value of each setting, or the lower end of its range."""
    return {name: _ends(each)[0] for name, each in sweep.settings.items()}


def as_overrides(point: Point) -> list[str]:
    """Return a point as `key=value`; of a section its kind first."""
    return [
        f"{name}={json.dumps(value)}" for name, value in sorted(point.items(), key=lambda item: not item[0].endswith("kind"))
    ]


def _why_not(name: str, given: set[str]) -> str | None:
    if any(name == other or name.startswith(f"{other}.") for other in _NOT_COMPARABLE):
        return "other clips, classes or scores: configurations could not be compared by their dev scores"
    if not changes_result(name):
        return "it only says where or how a run runs, and changes no result: nothing to choose"
    if any(f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.") for other in given):
        return "it is given on the command line as well: leave one of the two out"
    return None


def _values(each: Range | tuple[Any, ...]) -> Sequence[Any]:
    return each.grid() if isinstance(each, Range) else each


def _ends(each: Range | tuple[Any, ...]) -> Sequence[Any]:
    return (each.min, each.max) if isinstance(each, Range) else each


def _draw(each: Range | tuple[Any, ...], generator: random.Random) -> Any:
    return each.draw(generator) if isinstance(each, Range) else generator.choice(each)


def _problems(error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        place = [str(part) for part in detail["loc"] if part not in ("range", "values")]
        message = _MESSAGES.get(detail["type"], detail["msg"].removeprefix("Value error, "))
        yield f"{'.'.join(place)}: {message}" if place else message
