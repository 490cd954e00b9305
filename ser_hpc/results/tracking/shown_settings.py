"""Say which of a run's settings leave the machine, and in which words: no place of a file, nobody's account, no variables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ser_hpc.core.errors import UserError

# How jobs are run, where, and by whom; which seeds there are, more of which may come; names of speakers and clips.
_KEPT_BACK = ("schema", "run", "cluster", "trackers", "seeds", "folds.speaker_aliases", "folds.harmless_pairs")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'`,;|<>]*", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.:/~)\]-])(?:~[\w.-]*|\.{1,2})?(?:/[^\s/\"'`,;:()\[\]{}|<>]+)+/?")


def shown_settings(file: Path) -> dict[str, str]:
    """Read a run's settings, flat, by their dotted names; lists as JSON. Raises UserError if the file cannot be read."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the run's settings, {file}, cannot be read: {error}") from error
    return dict(_flat(tree if isinstance(tree, dict) else {}))


def _flat(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        path = f"{above}{name}"
        if path in _KEPT_BACK:
            continue
        if isinstance(value, dict) and path != "model.config":
            yield from _flat(value, f"{path}.")
        else:
            plain = _without_places(value)
            yield path, plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return without_places(value) if isinstance(value, str) else value


def without_places(text: str) -> str:
    """Leave of each absolute path, and of each URL, in a text its last name only: what stands in it, not where it lies."""
    return _PATH.sub(lambda found: _last_name(found[0]), _URL.sub(lambda found: _last_of_url(found[0]), text))


def _last_of_url(url: str) -> str:
    """Return the last name of a URL, without what a query or a user's part may hold."""
    place = re.split(r"[?#]", url.partition("://")[2])[0]
    return _last_name(place).rpartition("@")[2]


def _last_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
