"""Hash pre-trained weights in a local folder: their content is a part of a run's identity, and their path is not."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from ser_hpc.config.section import Section

_READ = ("*.safetensors", "*.bin", "*.json")  # weights, and what says how they are to be used


def local_folder(settings: Section) -> Path | None:
    """Return the folder that `model.weights` names; None if it is a name on the hub."""
    weights = getattr(getattr(settings, "model", None), "weights", None)
    path = Path(weights).expanduser() if weights else None
    return path if path is not None and path.is_dir() else None


def weights_digest(settings: Section) -> str | None:
    """Hash names and contents of a local folder's files, SHA-256 in hex; takes as long as to read them once."""
    path = local_folder(settings)
    if path is None:
        return None
    files = sorted({file for pattern in _READ for file in path.glob(pattern) if file.is_file()})
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash the files; cached by their size and time, for planning asks more than once."""
    whole = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as content:
            whole.update(f"{file.name}\0".encode() + hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()
