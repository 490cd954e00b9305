"""Write and read JSON files that show when somebody has changed them: each holds a hash of the rest of its content.

Against a slip, a merge of two folders, a script that "only corrects" a number; not against who computes the hash anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import read_json, write_json

_SEAL = "sha256"


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a value as JSON, in hex; whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """Return the value with its hash added."""
    return value | {_SEAL: json_digest(value)}


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write the value as JSON, with its hash."""
    write_json(path, seal(value))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what was written, without its hash. Raises OSError, or ValueError where it is not what was written."""
    return unseal(read_json(path))


def unseal(value: Any) -> dict[str, Any]:
    """Check the hash of a value that was read already, and return it without. Raises ValueError where it does not match."""
    if not isinstance(value, dict) or _SEAL not in value:
        raise ValueError("it has no checksum")
    content = {name: inner for name, inner in value.items() if name != _SEAL}
    if json_digest(content) != value[_SEAL]:
        raise ValueError("it was changed after it was written: its checksum does not fit")
    return content
