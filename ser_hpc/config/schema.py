"""Derive an experiment's identity from its settings, those that change its result, across versions of the settings.

A run is named by a hash of this identity. Settings at their defaults are left out, so a new one gives no run another name.
A default that changes raises SCHEMA and goes into DEFAULTS_BEFORE; so does a setting that gets another name, which goes into
RENAMED, and a value that does, which goes into RENAMED_VALUES. A run keeps the schema that it was made under: its settings are
read and written with that schema's defaults and names, and its identity stays the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ser_hpc.config.section import Section
from ser_hpc.config.transforms import strip_paths

SCHEMA = 3
# By the last schema in which it was so; a section of several kinds is written with its kind: model[acrnn].norm.
DEFAULTS_BEFORE: dict[int, dict[str, Any]] = {1: {"train.precision": "fp32"}}
# By the last schema in which it was so: the old path to the new one; None: the setting is gone.
RENAMED: dict[int, dict[str, str | None]] = {
    1: {"train.compile_minutes": None},
    2: {
        "data.keep_gb": "data.cache_gb",
        "data.max_damaged": "data.max_corrupt",
        "data.read_ahead_mb": "data.prefetch_mb",
        "folds.same_speakers": "folds.speaker_aliases",
        "train.average": "train.ema_decay",
        "cluster.parallel": "cluster.max_parallel_trials",
    },
}
# By the last schema in which it was so: of a setting, by its name in the next schema, the old value to the new one.
RENAMED_VALUES: dict[int, dict[str, dict[str, str]]] = {2: {"model[encoder].freeze": {"stem": "feature_encoder"}}}

# Settings newer than SCHEMA, and their defaults: a `*` stands for each name.
NEW: dict[str, Any] = {
    "folds.harmless_pairs": [],
    "data.crop": "start",
    "model[encoder].head[probe].normalization": "none",
    "data.mixup": None,
    "train.eval_steps": None,
    "train.freeze_epochs": 0,
    "train.unfreeze_layers": None,
    "model[encoder].init_from": None,
    "tasks.*.reversal": 0.0,
}

# By the last schema that did not have them: whatever they say, no run of an older schema is meant.
ADDED: dict[int, tuple[str, ...]] = {
    2: (
        "tasks",
        "trackers",
        "train.select_by",
        "train.optimizer",
        "train.head_lr",
        "train.layer_decay",
        "model[encoder].adapter",
        "data.order",
        "data.window_mb",
        "model[encoder].num_layers",
        "model[encoder].layers",
        *(path for path in NEW if "*" not in path),  # of a section that is new as a whole
    )
}

# Where and how an experiment runs: settings, or whole sections. Whatever does not stand here is part of the identity.
_NO_PART = {
    *(
        "run",
        "cluster",
        "trackers",
        "seeds",
        "data.shards",
        "data.labels",
        "data.max_corrupt",
        "data.workers",
        "data.prefetch_mb",
        "folds.harmless_pairs",
        "model[encoder].init_from",  # by the digest of its weights
    ),
    *("data.cache_gb", "train.strategy", "train.compile", "train.budget_seconds", "train.accumulation"),
    *("train.activation_checkpointing", "train.deterministic", "train.checkpoint_minutes", "train.hang_minutes"),
}
# Schema 1 wrote every setting into the identity, its defaults too: these, by their names of today.
_IN_SCHEMA_1 = {
    "": "data folds model train",
    "data": "max_seconds balance augment",
    "folds": "protocol count test_corpora train_corpora max_per_class",
    "model[encoder]": "kind weights config dropout freeze freeze_layers whisper_pad_to_30s normalize spec_augment head",
    "model[encoder].spec_augment": "time_prob time_frames feature_prob feature_width",
    "model[encoder].head[mean_pool]": "kind projection dropout",
    "model[acrnn]": "kind first_channels channels layers linear cells hidden mels norm dropout time_warp mel_warp filter_db "
    "time_mask_s mel_mask",
    "train": "epochs patience global_batch lr warmup decay weight_decay betas eps clip_norm ema_decay class_weights precision",
}


def identity(settings: Section, schema: int = SCHEMA) -> dict[str, Any] | None:
    """Return what changes the result, as `schema` writes it: strict JSON. None: it cannot be expressed in that schema."""
    found = _full_schema_1(settings, "") if schema == 1 else _changed(settings, "", _defaults_of(schema))
    if found is not None:
        restore_names(found, schema)
    return found


def changes_result(path: str) -> bool:
    """Tell whether the setting of that path, if there is one, is a part of the identity."""
    parts = path.split(".")
    return not any(".".join(parts[:end]) in _NO_PART for end in range(1, len(parts) + 1))


def under_schema(settings: Section, schema: int) -> tuple[Section, list[str]]:
    """Return the settings that the same file would have meant under an earlier schema, and `key=value` of what differs."""
    tree, changed = settings.model_dump(mode="json"), _changed(settings, "", {})
    differing = []
    for path, value in _defaults_of(schema).items():
        explicit, name = _find(changed, path)
        section, _ = _find(tree, path)
        if section is not None and name in section and name not in (explicit or {}):
            section[name] = value
            differing.append(f"{_without_kinds(path)}={value}")
    return type(settings).model_validate(tree), differing


def migrate(tree: dict[str, Any], schema: int) -> None:
    """Bring settings that were written under `schema` to today's names, in place, and fill in its own defaults."""
    rename(tree, schema)
    for path, value in _defaults_of(schema).items():
        _put(tree, path, value)


def rename(tree: dict[str, Any], schema: int) -> None:
    """Bring settings from the names of `schema` to today's, in place."""
    for number in range(schema, SCHEMA):
        for old, new in RENAMED.get(number, {}).items():
            _move(tree, old, new)
        for path, values in RENAMED_VALUES.get(number, {}).items():
            _replace_value(tree, path, values)


def restore_names(tree: dict[str, Any], schema: int) -> None:
    """Bring settings from today's names to those of `schema`, in place."""
    for number in reversed(range(schema, SCHEMA)):
        for path, values in RENAMED_VALUES.get(number, {}).items():
            _replace_value(tree, path, {new: old for old, new in values.items()})
        for old, new in RENAMED.get(number, {}).items():
            if new is not None:
                _move(tree, new, old)


def drop_added(tree: dict[str, Any], schema: int) -> None:
    """Leave out, in place, what settings of `schema` do not have, for its code would refuse it; it is at its default."""
    for number in range(schema, SCHEMA):
        for path in ADDED.get(number, ()):
            section, name = _find(tree, path)
            if section is not None:
                section.pop(name, None)


def drop_new_defaults(tree: dict[str, Any]) -> None:
    """Leave out, in place, settings newer than the schema that are at their defaults: its older code would refuse them."""
    for path, default in NEW.items():
        above, _, below = path.partition(".*.")
        paths = [f"{above}.{name}.{below}" for name in tree.get(above, {})] if below else [path]
        for each in paths:
            section, name = _find(tree, each)
            if section is not None and section.get(name, ...) == default:
                del section[name]


def new_name(path: str) -> str | None:
    """Tell what became of a setting that an earlier schema had, as `renamed to train.ema_decay`; None: there was none."""
    renamed = {_without_kinds(old): new for names in RENAMED.values() for old, new in names.items()}
    if path not in renamed:
        return None
    new: str | None = path
    while new is not None and _without_kinds(new) in renamed:
        new = renamed[_without_kinds(new)]
    return f"renamed to {_without_kinds(new)}" if new else "it was removed: leave it out"


def new_value(path: str, value: Any) -> str | None:
    """Return today's name of a value that an earlier schema had for the setting `path`; None: there was none."""
    found = [
        values[value]
        for each in RENAMED_VALUES.values()
        for at, values in each.items()
        if _without_kinds(at) == path and isinstance(value, str) and value in values
    ]
    return found[-1] if found else None


def _defaults_of(schema: int) -> dict[str, Any]:
    """Return the defaults of `schema` that have changed since: of two changes of one the older applies."""
    latest_first = (DEFAULTS_BEFORE.get(number, {}) for number in reversed(range(schema, SCHEMA)))
    return {path: value for defaults in latest_first for path, value in defaults.items()}


def _inside(section: Section, path: str) -> Iterator[tuple[str, str, Any]]:
    """Yield name, path and value of each field that has a part in the identity."""
    for name in type(section).model_fields:
        value, inner = getattr(section, name), f"{path}.{name}".removeprefix(".")
        if inner not in _NO_PART:
            kind = getattr(value, "kind", None) if isinstance(value, Section) else None
            yield name, f"{inner}[{kind}]" if kind else inner, value


def _changed(section: Section, path: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from the defaults, section by section; of another kind than the default one its kind as well."""
    found: dict[str, Any] = {}
    for name, inner, value in _inside(section, path):
        default = type(section).model_fields[name].default
        if isinstance(value, Section):
            if differs := _changed_section(value, default, inner, defaults):
                found[name] = differs
        elif isinstance(value, dict) and any(isinstance(each, Section) for each in value.values()):
            of_each = {
                entry: _changed_section(each, default.get(entry), f"{inner}.{entry}", defaults) for entry, each in value.items()
            }
            if differs := {entry: differs for entry, differs in of_each.items() if differs}:
                found[name] = differs
        elif name != "kind":
            default = defaults.get(inner, _plain_default(section, name))
            if (meant := _meaning(inner, _plain(section, name))) != _meaning(inner, default):
                found[name] = meant
    return found


def _changed_section(section: Section, default: Any, path: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from the defaults of the section's kind, and the kind where it is not that of `default`."""
    differs = _changed(section, path, defaults)
    return differs if type(section) is type(default) else differs | {"kind": getattr(section, "kind", None)}


def _full_schema_1(section: Section, path: str) -> dict[str, Any] | None:
    """Return the identity as schema 1 wrote it."""
    if path.endswith("]") and path not in _IN_SCHEMA_1:
        return None  # of a kind that there was not
    known = _IN_SCHEMA_1.get(path, "").split()
    found: dict[str, Any] = {}
    for name, inner, value in _inside(section, path):
        if name not in known:
            if _meaning(inner, _plain(section, name)) != _meaning(inner, _plain_default(section, name)):
                return None  # says what could not be said then
        elif isinstance(value, Section):
            found[name] = _full_schema_1(value, inner)
            if found[name] is None:
                return None
        else:
            found[name] = _plain(section, name)
    return found


def _plain(section: Section, name: str) -> Any:
    """Convert a field to strict JSON, without the places of files."""
    value = section.model_dump(mode="json", include={name})[name]
    return strip_paths(value) if name == "augment" else value


def _plain_default(section: Section, name: str) -> Any:
    """Convert a field's default to strict JSON; a field that has none never equals it."""
    if type(section).model_fields[name].is_required():
        return ...
    return _plain(type(section).model_construct(), name)


# What a field says, where it can be said in several ways.
_MEANING: dict[str, Callable[[Any], Any]] = {
    "folds.test_corpora": sorted,
    "folds.train_corpora": sorted,
    "folds.speaker_aliases": lambda people: {name: other for name, other in people.items() if other is not None},
}


def _meaning(path: str, plain: Any) -> Any:
    return _MEANING[path](plain) if path in _MEANING else plain


def _find(tree: dict[str, Any], path: str, make: bool = False) -> tuple[dict[str, Any] | None, str]:
    """Find the section of the tree that holds `path`, and the last name; None where there is none, or one of another kind."""
    *sections, last = path.split(".")
    at: Any = tree
    for step in sections:
        name, _, kind = step.removesuffix("]").partition("[")
        at = at.setdefault(name, {}) if make else at.get(name)
        if not isinstance(at, dict) or (kind and at.get("kind", kind) != kind):
            return None, last
    return at, last


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at `path`, unless there is one."""
    section, name = _find(tree, path, make=True)
    if section is not None:
        section.setdefault(name, value)


def _move(tree: dict[str, Any], old: str, new: str | None) -> None:
    """Give the value at `old`, if there is one, the path `new`, unless that has one; None: leave it out."""
    section, name = _find(tree, old)
    if section is not None and name in section:
        value = section.pop(name)
        if new is not None:
            _put(tree, new, value)


def _replace_value(tree: dict[str, Any], path: str, values: Mapping[str, str]) -> None:
    section, name = _find(tree, path)
    if section is not None and isinstance(value := section.get(name), str):
        section[name] = values.get(value, value)


def _without_kinds(path: str) -> str:
    return re.sub(r"\[.*?\]", "", path)
