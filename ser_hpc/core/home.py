"""Expand `~` in a path that a user wrote.

Unlike Path.expanduser, never with an error: `~nobody` stays as it is written, and whoever looks for such a file tells that
there is none.
"""

from __future__ import annotations

import os
from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """Return the path with `~` or `~user` at its beginning replaced by that user's folder, if there is one."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises
