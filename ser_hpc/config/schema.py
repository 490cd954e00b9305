"""Derive an experiment's identity from its settings, those that change its result, across versions of the settings.

A run is named by a hash of this identity. Settings at their defaults are left out, so a new one gives no run another name.
A default that changes raises SCHEMA and goes into DEFAULTS_BEFORE; a setting that gets another name goes into RENAMED. A run
keeps the schema that it was made under: its settings are read with that schema's defaults, and its identity stays the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ser_hpc.config.section import Section
from ser_hpc.config.transforms import strip_paths

SCHEMA = 2
# By the last schema in which it was so; a section of several kinds is written with its kind: model[acrnn].norm.
DEFAULTS_BEFORE: dict[int, dict[str, Any]] = {1: {"train.precision": "fp32"}}
# By the last schema in which it was so: the old path to the new one; None: the setting is gone.
RENAMED: dict[int, dict[str, str | None]] = {1: {"train.compile_minutes": None}}

# Where and how an experiment runs: settings, or whole sections. Whatever does not stand here is part of the identity.
_NO_PART = {
    *("run", "cluster", "seeds", "data.shards", "data.labels", "data.max_damaged", "data.workers", "data.read_ahead_mb"),
    *("data.keep_gb", "train.strategy", "train.compile", "train.budget_seconds", "train.accumulation"),
    *("train.activation_checkpointing", "train.deterministic", "train.checkpoint_minutes", "train.hang_minutes"),
}
# Schema 1 wrote every setting into the identity, its defaults too: these.
_IN_SCHEMA_1 = {
    "": "data folds model train",
    "data": "max_seconds balance augment",
    "folds": "protocol count test_corpora train_corpora max_per_class",
    "model[encoder]": "kind weights config dropout freeze freeze_layers whisper_pad_to_30s normalize spec_augment head",
    "model[encoder].spec_augment": "time_prob time_frames feature_prob feature_width",
    "model[encoder].head[mean_pool]": "kind projection dropout",
    "model[acrnn]": "kind first_channels channels layers linear cells hidden mels norm dropout time_warp mel_warp filter_db "
    "time_mask_s mel_mask",
    "train": "epochs patience global_batch lr warmup decay weight_decay betas eps clip_norm average class_weights precision",
}


def identity(settings: Section, schema: int = SCHEMA) -> dict[str, Any] | None:
    """Return what changes the result, as `schema` writes it: strict JSON. None: it cannot be expressed in that schema."""
    if schema == 1:
        return _full_schema_1(settings, "")
    return _changed(settings, "", _defaults_of(schema))


def under_schema(settings: Section, schema: int) -> tuple[Section, list[str]]:
    """Return the settings that the same file would have meant under an earlier schema, and `key=value` of what differs."""
    tree, changed = settings.model_dump(mode="json"), _changed(settings, "", {})
    differing = []
    for path, value in _defaults_of(schema).items():
        explicit, name = _find(changed, path)
        section, _ = _find(tree, path)
        if section is not None and name in section and name not in (explicit or {}):
            section[name] = value
            differing.append(re.sub(r"\[.*?\]", "", path) + f"={value}")
    return type(settings).model_validate(tree), differing


def migrate(tree: dict[str, Any], schema: int) -> None:
    """Bring settings that were written under `schema` to today's names, in place, and fill in its own defaults."""
    for renamed in reversed([*_since(RENAMED, 1)]):
        for old, new in renamed.items():
            section, name = _find(tree, old)
            if section is not None and name in section:
                value = section.pop(name)
                if new is not None:
                    _put(tree, new, value)
    for path, value in _defaults_of(schema).items():
        _put(tree, path, value)


def _since(changes: Mapping[int, Any], schema: int) -> Iterator[Any]:
    """Yield the changes from `schema` on, the latest first."""
    return (changes[number] for number in range(SCHEMA - 1, schema - 1, -1) if number in changes)


def _defaults_of(schema: int) -> dict[str, Any]:
    """Return the defaults of `schema` that have changed since: of two changes of one the older applies."""
    return {path: value for each in _since(DEFAULTS_BEFORE, schema) for path, value in each.items()}


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
            differs = _changed(value, inner, defaults)
            if type(value) is not type(default):
                differs["kind"] = getattr(value, "kind", None)
            if differs:
                found[name] = differs
        elif name != "kind":
            default = defaults.get(inner, _plain(type(section).model_construct(), name))
            if (meant := _meaning(inner, _plain(section, name))) != _meaning(inner, default):
                found[name] = meant
    return found


def _full_schema_1(section: Section, path: str) -> dict[str, Any] | None:
    """Return the identity as schema 1 wrote it."""
    if path.endswith("]") and path not in _IN_SCHEMA_1:
        return None  # of a kind that there was not
    known = _IN_SCHEMA_1.get(path, "").split()
    found: dict[str, Any] = {}
    for name, inner, value in _inside(section, path):
        if name not in known:
            if _meaning(inner, _plain(section, name)) != _meaning(inner, _plain(type(section).model_construct(), name)):
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


# What a field says, where it can be said in several ways.
_MEANING: dict[str, Callable[[Any], Any]] = {
    "folds.test_corpora": sorted,
    "folds.train_corpora": sorted,
    "folds.same_speakers": lambda people: {name: other for name, other in people.items() if other is not None},
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
