"""Find the near-duplicates of packed datasets once, and keep them beside the shards.

    OUT/near_duplicates.json                the pairs of a dataset, made when it was packed, or when somebody asked
    OUT/near_duplicates-<8 hex>.json        those between datasets that are read together, in the first folder that takes it

Both name the datasets, by their fingerprints, and the rules that the pairs were found by: others are not believed. Clips whose
samples are equal, and pieces of one recording that overlap by their times, are left out: the index tells those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ser_hpc.core.atomic_io import UNREADABLE, json_digest, seal, unseal, write_json
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.utterance import TextColumn
from ser_hpc.protocols.near_duplicates import NearDuplicates
from ser_hpc.shards import fingerprint, fingerprint_search
from ser_hpc.shards.fingerprint import words_to_seconds
from ser_hpc.shards.fingerprint_file import make_fingerprints, read_fingerprints
from ser_hpc.shards.fingerprint_search import SHORTEST_COMPARED, Fingerprints, Pairs, find_pairs
from ser_hpc.shards.index import Shard, ShardIndex
from ser_hpc.shards.shard_file import explain_disk_errors
from ser_hpc.shards.storage import Location, own_folder
from ser_hpc.shards.task_pool import TaskPool

FINGERPRINTING = "making fingerprints"
NEAR_DUPLICATES = "near_duplicates.json"
BETWEEN = "near_duplicates-????????.json"
MOST_AT_PLANNING = 100_000  # clips: some ten seconds
MOST_AT_PACKING = 2_000_000  # clips: some ten minutes, and 8 GB
_AT_ONCE = 16  # files: network file systems and stores answer slowly, but many at a time


def find_near_duplicates(index: ShardIndex, most_clips: int | None = MOST_AT_PLANNING) -> NearDuplicates:
    """Return the near-duplicates within and between the datasets of an index: those that are kept beside the shards or, where
    there are only fingerprints, those found now, which are then kept.

    `most_clips`: among more of them nothing is searched for now, None: whatever their number. What was not looked for is told.
    """
    dataset = np.array(index.dataset, dtype=np.int64)[index.shard]
    edges = np.searchsorted(dataset, np.arange(len(index.roots) + 1))
    sound, overlap = index.metadata.sound, index.metadata.overlap
    parts, lacking = [], []
    for number, (root, printed) in enumerate(zip(index.roots, index.fingerprints, strict=True)):
        start, stop = edges[number : number + 2].tolist()
        shards = [shard for shard, of in zip(index.shards, index.dataset, strict=True) if of == number]
        found = search_dataset(
            *(root, shards, printed, sound[start:stop], None if overlap is None else overlap[start:stop]),
            partial(_key_from, index, start),
            search=most_clips is None or stop - start <= most_clips,
        )
        if found is None:
            lacking.append(str(root))
        else:
            parts.append(found.shifted(start))
    if len(index.roots) > 1 and not lacking:
        between = _search_between(index, dataset, search=most_clips is None or len(dataset) <= most_clips)
        if between is None:
            lacking.append("any two of them together")
        else:
            parts.append(between)
    pairs = Pairs.join(parts)
    command = f"python -m ser_hpc.inspect {' '.join(str(root) for root in index.roots)} --near-duplicates"
    if not all(isinstance(root, Path) for root in index.roots):
        command = "python -m ser_hpc.inspect FOLDER --near-duplicates, before the shards are copied to a store,"
    message = (
        f"Near-duplicates (the same recording, altered a little) were not looked for in {listed(lacking)}. "
        f"{command} does it, once."
    )
    too_short = int((index.num_samples < SHORTEST_COMPARED).sum())
    return NearDuplicates(pairs.positions, pairs.seconds, pairs.error, message if lacking else "", too_short)


def _key_from(index: ShardIndex, start: int, position: int) -> str:
    return index.key(start + position)


def search_dataset(
    root: Location,
    shards: Sequence[Shard],
    printed: str,
    sound: TextColumn,
    overlap: np.ndarray | None,
    key: Callable[[int], str],
    *,
    search: bool = True,
) -> Pairs | None:
    """Return the pairs of a dataset as they are kept; else find and keep them now, if they are to be searched for.

    `printed`: the dataset's fingerprint; `sound`, `overlap`: as in `Metadata`; `key`: of the clip at a position. None where a
    shard has no fingerprints, or there was no search.
    """
    kept = _read(root / NEAR_DUPLICATES, [printed], len(sound))
    if kept is not None or not search or (prints := load_fingerprints([(root, shard) for shard in shards])) is None:
        return kept
    pairs = find_pairs(prints, wanted=partial(_unequal, sound, overlap))
    _keep([root / NEAR_DUPLICATES], [printed], len(sound), pairs, key)
    return pairs


def num_pairs_kept(root: Location, printed: str, num_clips: int) -> int | None:
    """Return how many near-duplicates a dataset has, as it is kept; None where nobody has looked."""
    kept = _read(root / NEAR_DUPLICATES, [printed], num_clips)
    return None if kept is None else len(kept)


def load_fingerprints(shards: Sequence[tuple[Location, Shard]]) -> Fingerprints | None:
    """Read the fingerprints of all clips of these shards; None where one has none."""

    def read(each: tuple[Location, Shard]) -> tuple[np.ndarray, np.ndarray] | None:
        root, shard = each
        return read_fingerprints(root / shard.path, shard.sha256, shard.clips)

    if not shards or read(shards[0]) is None:  # where one has none, no other is asked for
        return None
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(read, shards))
    whole = [each for each in found if each is not None]
    return (
        Fingerprints.join([words for words, _ in whole], [lengths for _, lengths in whole])
        if len(whole) == len(found)
        else None
    )


def make_missing_fingerprints(index: ShardIndex, workers: int, progress: Callable[[str, float, float], None]) -> None:
    """Make the fingerprints of all shards of an index that have none. `progress(stage, done, total)` counts seconds of sound.

    Raises UserError where a folder cannot be written, or a clip is damaged.
    """
    shards = [(index.roots[number], shard) for number, shard in zip(index.dataset, index.shards, strict=True)]
    lacking = shards_without_fingerprints([(root, shard) for root, shard in shards if isinstance(root, Path)])
    with explain_disk_errors(lacking[0][0] if lacking else Path()), TaskPool(workers if len(lacking) > 1 else 1) as pool:
        make_fingerprints_of(lacking, pool, progress)


def shards_without_fingerprints(shards: Sequence[tuple[Path, Shard]]) -> list[tuple[Path, Shard]]:
    """List those that have none, or damaged ones."""
    return [(root, shard) for root, shard in shards if read_fingerprints(root / shard.path, shard.sha256, shard.clips) is None]


def make_fingerprints_of(
    shards: Sequence[tuple[Path, Shard]], pool: TaskPool, progress: Callable[[str, float, float], None]
) -> None:
    """Make the fingerprints of these shards, by the processes of a pool."""
    done, total = 0.0, sum(shard.seconds for _, shard in shards)
    for shard in pool.run(make_fingerprints, shards):
        done += shard.seconds
        progress(FINGERPRINTING, done, total)


def forget_pairs(out: Path) -> None:
    """Remove what was kept of pairs with other datasets."""
    for path in out.glob(BETWEEN):
        path.unlink(missing_ok=True)


def _search_between(index: ShardIndex, dataset: np.ndarray, *, search: bool) -> Pairs | None:
    """Return the pairs between datasets as `search_dataset` does those of one."""
    name = BETWEEN.replace("????????", json_digest(index.fingerprints)[:8])
    places = [root / name for root in index.roots]
    with suppress(UserError):
        places.append(own_folder() / name)
    for place in places:
        if (kept := _read(place, index.fingerprints, len(dataset))) is not None:
            return kept
    shards = [(index.roots[number], shard) for number, shard in zip(index.dataset, index.shards, strict=True)]
    if not search or (prints := load_fingerprints(shards)) is None:
        return None
    pairs = find_pairs(prints, dataset, partial(_unequal, index.metadata.sound, index.metadata.overlap))
    _keep(places, index.fingerprints, len(dataset), pairs, index.key)
    return pairs


def _unequal(sound: TextColumn, overlap: np.ndarray | None, pairs: Pairs) -> Pairs:
    """Leave out clips of the very same samples, and pieces that overlap by their times."""
    wanted = np.array(
        [a != b for a, b in zip(sound[pairs.first].tolist(), sound[pairs.second].tolist(), strict=True)], dtype=bool
    )
    if overlap is not None:
        wanted &= (overlap[pairs.first] < 0) | (overlap[pairs.first] != overlap[pairs.second])
    return pairs.take(wanted)


def _header(datasets: Sequence[str], num_clips: int) -> dict[str, Any]:
    return {
        "format": "ser_hpc near-duplicates",
        "fingerprints": fingerprint.LAYOUT,
        "most_errors": [fingerprint_search.MOST_ERRORS, fingerprint_search.MOST_ERRORS_SHORT],
        "least_share": round(fingerprint_search.LEAST_SHARE, 3),
        "datasets": list(datasets),
        "clips": num_clips,
    }


def _keep(places: Sequence[Location], datasets: Sequence[str], num_clips: int, pairs: Pairs, key: Callable[[int], str]) -> None:
    """Write pairs to the first of the places that takes them; nothing is lost but time where none does."""
    columns = zip(*(getattr(pairs, field.name).tolist() for field in fields(pairs)), strict=True)
    rows = [
        {
            "clips": [key(first), key(second)],
            "positions": [first, second],
            "offset": offset,
            "words": words,
            "seconds": round(words_to_seconds(words), 3),
            "error": round(error, 4),
        }
        for first, second, offset, words, error in columns
    ]
    content = seal(_header(datasets, num_clips) | {"pairs": rows})
    for place in places:
        if isinstance(place, Path):
            with suppress(OSError):
                write_json(place, content)
                return


def _read(place: Location, datasets: Sequence[str], num_clips: int) -> Pairs | None:
    """Read the pairs of these datasets; None where they are not there, damaged, of others, or found by other rules."""
    try:
        content = unseal(json.loads(place.read_bytes()))
        rows = content.pop("pairs")
        if content != _header(datasets, num_clips):
            return None
        columns = [[row["positions"][0] for row in rows], [row["positions"][1] for row in rows]]
        columns += [[row["offset"] for row in rows], [row["words"] for row in rows]]
        first, second, offset, words = (np.array(column, dtype=np.int64) for column in columns)
        error = np.array([row["error"] for row in rows], dtype=np.float64)
    except (UserError, *UNREADABLE):
        return None
    pairs = Pairs(first, second, offset, words, error)
    there = (first >= 0) & (first < second) & (second < num_clips)
    return pairs if there.all() else None
