"""Lay out recordings that are embedded in a dataset as files, as everything downstream reads recordings by path."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.parse_result import AUDIO

FOLDER = ".ser_hpc_audio"


def lay_out(root: Path, payload: bytes, suffix: str) -> Path:
    """Return the file below `root` that holds these bytes, `root/.ser_hpc_audio/../<hash of them>`; one there stays.

    Raises UserError where it cannot be written.
    """
    digest = hashlib.sha256(payload).hexdigest()[:32]
    path = root / FOLDER / digest[:2] / f"{digest}{suffix if suffix in AUDIO else ''}"
    try:
        if not path.is_file() or path.stat().st_size != len(payload):
            with write_aside(path) as temporary:
                temporary.write_bytes(payload)
    except OSError as error:
        raise UserError(
            f"the dataset's sound must be laid out as files in {root / FOLDER}, which cannot be written: {error}. Make the "
            "folder writable, or copy the dataset to a place that is"
        ) from error
    return path
