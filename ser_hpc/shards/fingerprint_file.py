"""Keep the acoustic fingerprints of a shard's clips in a file beside its tar and index.

    OUT/<group>/<corpus>-<group>-000000.fingerprints    a line of JSON; how many words each clip has, int32, in the tar's order;
                                                        the words of all, uint16

They are no part of the index, which they would make many times larger, nor of what identifies a dataset. The first line names
the tar (its SHA-256) and has the SHA-256 of the rest: what does not fit is made again, as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser_hpc.core.atomic_io import UNREADABLE, write_aside
from ser_hpc.core.errors import UserError
from ser_hpc.shards import fingerprint
from ser_hpc.shards.index import Shard, read_table
from ser_hpc.shards.read import ClipReader, CorruptClipError, Extent
from ser_hpc.shards.storage import Location
from ser_hpc.shards.task_pool import check_stopped

SUFFIX = ".fingerprints"
_LONGEST_HEADER = 1000


def write_fingerprints(tar: Path, sha256: str, prints: Sequence[np.ndarray]) -> None:
    """Write the file beside a tar. `sha256`: of that tar; `prints`: of each clip in it, uint16 (num_words,)."""
    lengths = np.array([len(words) for words in prints], dtype="<i4")
    body = lengths.tobytes() + b"".join(np.ascontiguousarray(words, "<u2").tobytes() for words in prints)
    header = _header(sha256, len(prints)) | {"sha256": hashlib.sha256(body).hexdigest()}
    with write_aside(tar.with_suffix(SUFFIX)) as temporary:
        temporary.write_bytes(json.dumps(header).encode() + b"\n" + body)


def read_fingerprints(tar: Location, sha256: str, num_clips: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the words of a tar's clips, uint16 (num_words,), and how many of them each has, int64 (num_clips,).

    None where there are none to be had, or they are another tar's, another version's or damaged.
    """
    try:
        content = tar.with_suffix(SUFFIX).read_bytes()
        end = content.index(b"\n", 0, _LONGEST_HEADER)
        header: dict[str, Any] = json.loads(content[:end])
        body = memoryview(content)[end + 1 :]
        expected = _header(sha256, num_clips) | {"sha256": hashlib.sha256(body).hexdigest()}
        if header != expected or len(body) < 4 * num_clips:
            return None
        lengths = np.frombuffer(body, "<i4", num_clips).astype(np.int64)
        words = np.frombuffer(body, "<u2", offset=4 * num_clips).astype(np.uint16)
    except (UserError, *UNREADABLE):
        return None
    return (words, lengths) if (lengths >= 0).all() and lengths.sum() == len(words) else None


def make_fingerprints(root: Path, shard: Shard) -> Shard:
    """Make the file of a shard that has none, from the clips in its tar. Raises UserError where one is damaged, or OSError."""
    columns = read_table(root, shard).select(["key", "offset", "size", "num_samples", "crc32"]).to_pydict().values()
    reader = ClipReader((root,))
    prints = []
    for key, *row in zip(*columns, strict=True):
        check_stopped()
        (samples,) = reader.read([Extent(key, 0, shard.path, *row)])
        if isinstance(samples, CorruptClipError):
            raise samples
        prints.append(fingerprint.fingerprint(samples))
    reader.close()
    write_fingerprints(root / shard.path, shard.sha256, prints)
    return shard


def _header(sha256: str, num_clips: int) -> dict[str, Any]:
    return {"format": "ser_hpc fingerprints", "layout": fingerprint.LAYOUT, "tar": sha256, "clips": num_clips}
