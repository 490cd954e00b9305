"""What a part found, on its way into JSON, which knows no infinity and no NaN: these become words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import write_json


def write_told(path: Path, found: Any) -> None:
    """Write it, whole."""
    write_json(path, worded(found))


def worded(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: worded(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [worded(value) for value in found]
    return str(found) if isinstance(found, float) and not math.isfinite(found) else found
