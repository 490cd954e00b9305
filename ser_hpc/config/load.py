"""Load settings from defaults < cluster profile < file < command line; all mistakes at once, with the nearest known key.

settings = load_settings(Path("configs/emodb_acrnn.yaml"), ["train.epochs=60", "cluster.profile=pace_ice"])

A profile says how things are done at a site (configs/cluster): what it sets are defaults of the section `cluster`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ser_hpc.config import schema as schemas
from ser_hpc.config.choice import Choice, choice_of, is_by_name, section_asked
from ser_hpc.config.extensions import import_from
from ser_hpc.config.settings import Settings
from ser_hpc.core.errors import ConfigError, UserError

EXTENSIONS = Path("code/extensions")  # in a run: copies of what stands outside the package
_ALIASES = {"auto": None, "slurm": "generic"}


class _Yaml(yaml.SafeLoader):
    """Without YAML 1.1's numbers to the base of 60, which make 14400 of Slurm's 4:00:00."""

    def integer(self, node: yaml.ScalarNode) -> int | str:
        return str(node.value) if ":" in node.value else self.construct_yaml_int(node)


_Yaml.add_constructor("tag:yaml.org,2002:int", _Yaml.integer)


def load_settings(file: Path | None, overrides: Sequence[str], schema: int | None = None) -> Settings:
    """Merge and check settings. `overrides`: `key.path=value`, the value read as YAML. Raises ConfigError with every mistake.

    `schema`: that of a file which does not say its own; none: today's.
    """
    tree = read_yaml(file) if file else {}
    written = tree.pop("schema", schema or schemas.SCHEMA)
    if not isinstance(written, int) or not 1 <= written <= schemas.SCHEMA:
        known = f"this version knows 1 to {schemas.SCHEMA}"
        raise UserError(f"{file} is of schema {written!r}, and {known}: use the version that wrote it")
    if any(override.startswith("cluster.profile=") for override in overrides) and isinstance(tree.get("cluster"), dict):
        tree["cluster"].pop("kind", None)  # the file's belongs to the file's profile
    _switch_kinds(tree, overrides)
    problems = [problem for override in overrides if (problem := _set(tree, override))]
    schemas.migrate(tree, written)
    profile = _profile(tree, problems)
    merged = _merge({"cluster": profile}, tree) if profile else tree
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        for detail in error.errors():
            origin = "" if _is_set_in(tree, detail["loc"]) else "in the cluster profile, "
            problems.append(origin + _describe_problem(detail, merged))
    if problems:
        raise ConfigError(problems)
    return settings


def load_run_settings(file: Path) -> Settings:
    """Load the settings that a run was made with, by this version or an earlier one; the first one wrote no schema."""
    with import_from(file.resolve().parent / EXTENSIONS):
        return load_settings(file, [], schema=1)


def dump_settings(settings: Settings, schema: int = schemas.SCHEMA) -> str:
    """Return the resolved settings as YAML that `load_settings` takes back, in the names of `schema`.

    What a profile sets is written out and its name left out: jobs need no profile, which may change, or be a file elsewhere. Of
    the cluster, and of settings newer than the schema, only what differs from the defaults is: a run that goes on with its own,
    older code must know each name.
    """
    cluster = settings.cluster.model_dump(mode="json", exclude={"profile"}, exclude_defaults=True)
    tree = settings.model_dump(mode="json") | {"cluster": cluster}
    schemas.drop_new_defaults(tree)
    schemas.drop_added(tree, schema)
    schemas.restore_names(tree, schema)
    tree = ({"schema": schema} if schema > 1 else {}) | tree  # the first one had no number
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def configs_folder() -> Path:
    """Return the folder of the project's configurations: in the installed or copied package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(path for path in (package / "_configs", package.parent / "configs") if path.is_dir())


def find_config(name: str, folder: str) -> Path:
    """Find a file by path, or by name in the project's `configs/<folder>`. Raises UserError naming what there is."""
    configs, given = configs_folder(), Path(name)
    own = configs / folder / f"{name}.yaml"
    if given.is_file():
        return given
    if own.is_file():
        return own
    known = sorted(path.stem for path in (configs / folder).glob("*.yaml"))
    what = {"": "configurations", "labels": "label sets", "cluster": "cluster profiles"}[folder]
    raise UserError(f"{name!r} is neither a file nor one of the project's {what}: {', '.join(known)}")


def _profile(tree: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the fields of the profile that `tree` names, and put its resolved name there; mistakes go to `problems`."""
    cluster = tree.get("cluster")
    if not isinstance(cluster, dict) or not isinstance(cluster.get("profile"), str):
        return {}
    name = cluster["profile"] = _ALIASES.get(cluster["profile"], cluster["profile"])
    if name is None:
        return {}
    try:
        fields = read_yaml(find_config(name, "cluster"))
    except UserError as error:
        problems.append(f"cluster.profile: {error}")
        return {}
    if "profile" in fields:
        problems.append(f"cluster.profile: {name} names another profile, {fields.pop('profile')}; write its fields out")
    return fields


def _merge(below: Any, above: Any) -> Any:
    """Merge `above` over `below`, key by key."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _merge(below[key], value) if key in below else value for key, value in above.items()}


def _is_set_in(tree: Any, path: Sequence[str | int]) -> bool:
    """Tell whether the value at `path` is the tree's own, without the profile's fields."""
    if path[:1] != ("cluster",) or len(path) < 2:
        return True
    return isinstance(tree.get("cluster"), dict) and path[1] in tree["cluster"]


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a file of settings, as it stands. Raises UserError where it is no mapping."""
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), _Yaml) or {}
    except OSError as error:
        raise UserError(f"configuration {file} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"configuration {file} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"configuration {file} must be a mapping of settings, but is {type(tree).__name__}")
    return tree


def _switch_kinds(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Drop from a section of the file what means something to its own kind alone, where the command line chooses another: what
    that one has not, or has by the same name for something else."""
    for override in overrides:
        path, _, kind = override.partition("=")
        *keys, last = path.split(".")
        section: Any = tree
        for key in keys:
            section = section.get(key) if isinstance(section, dict) else None
        if last != "kind" or not isinstance(section, dict):
            continue
        choice, own = _chosen(keys, tree)
        new = choice.kinds.get(kind) if choice else None
        if new is not None and own is not None and new is not own:
            before, after = own.model_fields, new.model_fields
            for name in [name for name in section if name in before and name != "kind"]:
                if name not in after or after[name].annotation != before[name].annotation:
                    del section[name]


def _set(tree: dict[str, Any], override: str) -> str | None:
    """Put one `key.path=value` into the tree; returns what is wrong with it, if anything."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        return f"{override!r}: write key=value, for instance train.epochs=60"
    try:
        value = yaml.load(text, _Yaml)
    except yaml.YAMLError:
        return f"{override!r}: the value is not YAML; text with [ ] {{ }} : or # in it stands in quotes: {path}='\"...\"'"
    section: Any = tree
    for depth, key in enumerate(keys[:-1], start=1):
        if isinstance(section.get(key), str):  # a kind alone, whose settings follow: tasks.gender=classification
            section[key] = {"kind": section[key]}
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            return f"{override!r}: {'.'.join(keys[:depth])} is a value, not a section"
    section[keys[-1]] = value
    return None


def _describe_problem(detail: ErrorDetails, tree: dict[str, Any]) -> str:
    location = [str(part) for part in detail["loc"]]
    path = ".".join(location) or "settings"
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key; {_hint(location[:-1], location[-1], tree)}"
    if detail["type"] == "missing":
        return f"{path} is not given, and has no default"
    message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    if (renamed := schemas.new_value(path, given)) is not None:
        return f"{path}: {given!r} was renamed to {renamed!r}"
    return f"{path}: {message}" if isinstance(given, dict | BaseModel) else f"{path}: {message}; given {given!r}"


def _hint(section: Sequence[str], key: str, tree: dict[str, Any]) -> str:
    """Suggest a key: its new name, that of the same name elsewhere, or a similar one, here before elsewhere; else list all."""
    if (renamed := schemas.new_name(".".join((*section, key)))) is not None:
        return renamed
    paths = list(_paths(Settings, tree))
    here = {path[-1]: path for path in paths if path[:-1] == tuple(section)}
    same = [path for path in paths if path[-1] == key]
    near = difflib.get_close_matches(key, here, n=1, cutoff=0.7)
    slip = difflib.get_close_matches(key, {path[-1] for path in paths}, n=1, cutoff=0.8)
    meant = same or [here[name] for name in near] or [path for path in paths if path[-1] in slip]
    if elsewhere := _kinds_with(section, key, tree):
        return elsewhere
    if meant:
        return f"did you mean {' or '.join('.'.join(path) for path in meant)}?"
    return f"known: {', '.join(here)}" if here else "there is no such setting"


def _kinds_with(section: Sequence[str], key: str, tree: Any) -> str | None:
    """Say which kinds of the section's have that key, where the one that is chosen lacks it."""
    choice, model = _chosen(section, tree)
    having = [kind for kind, each in choice.kinds.items() if key in each.model_fields] if choice and model else []
    if not having or model is None:
        return None
    given = model.model_fields["kind"].default
    return f"this is of the kind {given}, and {key} of {' and '.join(having)}: add {'.'.join(section)}.kind={having[0]}"


def _chosen(section: Sequence[str], tree: Any) -> tuple[Choice | None, type[BaseModel] | None]:
    """Return how the section at a path is chosen, if it is, and the settings class that the user's tree asks for there."""
    model: type[BaseModel] | None = Settings
    choice, steps = None, iter(section)
    for name in steps:
        if model is None or name not in model.model_fields:
            return None, None
        field = model.model_fields[name]
        tree, choice = tree.get(name) if isinstance(tree, dict) else None, choice_of(field)
        if is_by_name(field):
            entry = next(steps, None)
            tree = tree.get(entry) if isinstance(tree, dict) else None
        model = section_asked(field, tree if isinstance(tree, dict) else {})
    return choice, model


def _paths(section: type[BaseModel], tree: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every key's path, section by section; where a kind is chosen those of the one that the user's tree asks for."""
    for name, field in section.model_fields.items():
        yield (*above, name)
        below = tree.get(name) if isinstance(tree, dict) else None
        entries: dict[tuple[str, ...], Any] = {(name,): below}
        if is_by_name(field):
            entries = {(name, entry): value for entry, value in below.items()} if isinstance(below, dict) else {}
        for place, value in entries.items():
            if (kind := section_asked(field, value if isinstance(value, dict) else {})) is not None:
                yield from _paths(kind, value, (*above, *place))
