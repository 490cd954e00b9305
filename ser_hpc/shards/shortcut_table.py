"""Keep what `shortcut_features` measures of clips beside their shards, so that it is measured once.

    FOLDER/features-<12 hex of the dataset>-<version>.npy     float64 (clips, 1 + WIDTH): row in the dataset, what was measured

Of large datasets only some clips are in it; others are added as they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.shards import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ClipReader, CorruptClipError, clip_extents
from ser_hpc.shards.shortcut_features import VERSION, WIDTH, measure_clip

_AT_ONCE = 120 * RATE  # samples that a thread holds
_THREADS = 4
_LARGEST = 1 << 30  # bytes of a file


class Folder(Protocol):
    """Where files lie, as `shared_folder.SharedFolder` knows."""

    def find(self, name: str) -> Sequence[Path]: ...
    def write(self, name: str, write: Callable[[Path], Any]) -> Path | None: ...


def measure_clips(index: ShardIndex, positions: np.ndarray, folder_of: Callable[[int], Folder]) -> np.ndarray:
    """Return what is measured of the clips at `positions` (ascending), float64 (clips, WIDTH); nan for a damaged clip.

    `folder_of`: where the file of a dataset (its number) lies. Raises UserError if a shard cannot be read.
    """
    dataset = np.asarray(index.dataset)[index.shard[positions]]
    firsts = np.searchsorted(np.asarray(index.dataset)[index.shard], np.arange(len(index.roots)))
    found = np.full((len(positions), WIDTH), np.nan)
    for number in np.unique(dataset).tolist():
        of_dataset = np.flatnonzero(dataset == number)
        folder, name = folder_of(number), f"features-{index.fingerprints[number][:12]}-{VERSION}.npy"
        known = _read_tables(folder.find(name))
        rows = positions[of_dataset] - firsts[number]
        new = ~np.isin(rows, known[:, 0])
        if new.any():
            measured = _measure(index, positions[of_dataset[new]])
            known = np.concatenate([known, np.column_stack([rows[new], measured])])
            known = known[np.argsort(known[:, 0], kind="stable")]
            folder.write(name, lambda path, table=known: _write_table(path, table))  # type: ignore[misc]
        found[of_dataset] = known[np.searchsorted(known[:, 0], rows), 1:]
    return found


def _measure(index: ShardIndex, positions: np.ndarray) -> np.ndarray:
    reader = ClipReader(index.roots, coalesce=True)

    def block(some: np.ndarray) -> np.ndarray:
        clips = reader.read(clip_extents(index, some))
        damaged = np.full(WIDTH, np.nan)
        return np.stack([damaged if isinstance(clip, CorruptClipError) else measure_clip(clip) for clip in clips])

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate([*pool.map(block, _blocks(positions, index.num_samples[positions]))])


def _blocks(positions: np.ndarray, num_samples: np.ndarray) -> list[np.ndarray]:
    """Cut into blocks of about `_AT_ONCE` samples, or one clip that is longer."""
    return np.split(positions, np.flatnonzero(np.diff(np.cumsum(num_samples) // _AT_ONCE)) + 1)


def _write_table(path: Path, table: np.ndarray) -> None:
    with write_aside(path) as temporary, temporary.open("wb") as file:
        file.write(_header(len(table)))
        table.astype("<f8").tofile(file)


def _header(num_clips: int) -> bytes:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (num_clips, 1 + WIDTH)})
    return file.getvalue()


def _read_tables(paths: Sequence[Path]) -> np.ndarray:
    """Read the table with the most clips; an empty one where none is what was written."""
    tables = [table for path in paths if (table := _read_table(path)) is not None]
    return max(tables, key=len, default=np.empty((0, 1 + WIDTH)))


def _read_table(path: Path) -> np.ndarray | None:
    """Read a file that anybody may have changed: None where it is no such table. Its header is compared, never interpreted."""
    with suppress(OSError), path.open("rb") as file:
        num_clips, rest = divmod(path.stat().st_size - len(_header(0)), 8 * (1 + WIDTH))
        if rest or not 0 <= num_clips * 8 * (1 + WIDTH) <= _LARGEST or file.read(len(_header(0))) != _header(num_clips):
            return None
        table = np.fromfile(file, "<f8").reshape(num_clips, 1 + WIDTH)
        rows = table[:, 0]
        if np.isinf(table).any() or not (np.diff(rows) > 0).all() or not (rows >= 0).all():
            return None
        return table
    return None
