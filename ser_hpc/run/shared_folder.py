"""Find the folder for what runs on the same shards share: beside the shards or, where that cannot be written, beside the runs.

Read are both, since a place that is read-only today may have been written yesterday, or by somebody else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_hpc.run.run_dir import RunDir
from ser_hpc.shards.storage import Location


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """Folders of one name. `beside_shards`: None where the shards are remote or gone; `beside_runs`: in run.root."""

    beside_shards: Path | None
    beside_runs: Path

    @classmethod
    def of(cls, run: RunDir, shards: Location | None, name: str) -> SharedFolder:
        """Return the folders called `name` for a run on these shards."""
        local = shards if isinstance(shards, Path) and os.path.isdir(shards) else None  # noqa: PTH112  # never raises
        return cls(local / name if local else None, run.path.absolute().parent / name)

    @property
    def places(self) -> tuple[Path, ...]:
        """Return where to look, and in which order to try to write."""
        return (self.beside_shards, self.beside_runs) if self.beside_shards else (self.beside_runs,)

    def find(self, name: str) -> Sequence[Path]:
        """Return the files of this name that there are."""
        return [path for place in self.places if os.path.isfile(path := place / name)]  # noqa: PTH113  # never raises

    def write(self, name: str, write: Callable[[Path], Any]) -> Path | None:
        """Call `write(path)` with the first place that can be written; return its path, None where none can."""
        for place in self.places:
            with suppress(OSError):
                if not os.access(place if place.exists() else place.parent, os.W_OK | os.X_OK):
                    continue
                _make_like_parent((place / name).parent)
                write(place / name)
                return place / name
        return None


def _make_like_parent(folder: Path) -> None:
    """Make a folder that those may write into who may write into the one above: a group shares its shards."""
    if folder.exists():
        return
    _make_like_parent(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
        with suppress(OSError):
            folder.chmod(stat.S_IMODE(folder.parent.stat().st_mode))
