"""Summarise packed datasets from their indices alone: counts, durations, what packing found, and any one clip.

Everything is counted in Arrow and numpy, so that a million clips take no longer than reading their index.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import soundfile

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.words import WordColumn
from ser_hpc.shards import RATE
from ser_hpc.shards.index import REPORT, ShardIndex, read_table
from ser_hpc.shards.pack_report import ClipCount
from ser_hpc.shards.read import ShardReader
from ser_hpc.shards.storage import Location

_BINS = 12  # of equal width over all but the longest hundredth of the clips, which is in the last one
_WIDTHS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0, 86_400.0)
_NO_SOUND = ClipCount(0, 0.0)


@dataclass(frozen=True, slots=True)
class Durations:
    """Distribution of the clips' durations, in seconds. `bins`: (from, to, clips), equally wide but for the last."""

    shortest: float
    median: float
    mean: float
    percentile_95: float
    longest: float
    bins: tuple[tuple[float, float, int], ...]


def tally(names: Sequence[str], codes: np.ndarray, seconds: np.ndarray) -> dict[str, ClipCount]:
    """Count clips and seconds by name, in the order of the names; clip i has `names[codes[i]]`."""
    clips = np.bincount(codes, minlength=len(names)).tolist()
    sums = np.bincount(codes, weights=seconds, minlength=len(names)).tolist()
    return {name: ClipCount(n, round(s, 3)) for name, n, s in zip(names, clips, sums, strict=True)}


def count_by_column(index: ShardIndex, column: str) -> dict[str, ClipCount]:
    """Count clips and seconds by the values of a text column, sorted; "" = not annotated. Several corpora: corpus/speaker."""
    values: WordColumn = getattr(index.metadata, column)
    if column == "speaker" and _several(index):
        values = WordColumn.join(index.metadata.corpus, values)
    return tally(*values.number(), index.metadata.seconds)


def by_corpus(index: ShardIndex, names: Sequence[str], codes: np.ndarray) -> dict[str, dict[str, int]]:
    """Count the clips of each corpus by name, in the order of the names; clip i has `names[codes[i]]`."""
    corpora, corpus = index.metadata.corpus.number()
    table = np.bincount(corpus * len(names) + codes, minlength=len(corpora) * len(names)).reshape(len(corpora), len(names))
    return {name: dict(zip(names, row.tolist(), strict=True)) for name, row in zip(corpora, table, strict=True)}


def count_by_group(index: ShardIndex) -> dict[str, ClipCount]:
    """Count clips and seconds of each group of shards (a session, a speaker, a bucket of speakers), sorted."""
    several = _several(index)
    found: dict[str, ClipCount] = defaultdict(lambda: _NO_SOUND)
    for shard in index.shards:
        name = f"{shard.corpus}/{shard.group}" if several else shard.group
        found[name] = ClipCount(found[name].clips + shard.clips, round(found[name].seconds + shard.seconds, 3))
    return dict(sorted(found.items()))


def summarize_durations(index: ShardIndex) -> Durations:
    """Return quantiles and a histogram of the clips' durations."""
    seconds = index.metadata.seconds
    shortest, median, high, tail, longest = np.quantile(seconds, [0, 0.5, 0.95, 0.99, 1]).tolist()
    width = next(width for width in _WIDTHS_S if (tail - shortest) / width <= _BINS)
    edges = np.arange(shortest // width, tail // width + 2) * width
    edges[-1] = max(edges[-1], np.nextafter(longest, np.inf))  # the last bin goes on to the longest clip
    found = np.histogram(seconds, edges)[0].tolist()
    bins = tuple(zip(edges[:-1].round(1).tolist(), edges[1:].round(1).tolist(), found, strict=True))
    return Durations(shortest, median, float(seconds.mean()), high, longest, bins)


def read_pack_report(root: Location) -> dict[str, Any] | None:
    """Read the findings and the files left out from pack_report.json; None where a copy of the shards came without it.

    Raises UserError if it cannot be read.
    """
    path = root / REPORT
    try:
        report = json.loads(path.read_bytes())
        return {"findings": report["findings"], "left_out": report["left_out"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); pack the corpus again with the same command to make it anew") from error


def find_clip(index: ShardIndex, name: str) -> int:
    """Return the position of the clip with this id, or this key (corpus-id). Raises UserError for none, or several."""
    ids = index.metadata.utterance_id
    found = np.flatnonzero(ids.is_text(name))
    if not len(found):
        corpus, _, identity = name.partition("-")
        found = np.flatnonzero(ids.is_text(identity) & (index.metadata.corpus == corpus))
    if len(found) == 1:
        return int(found[0])
    if len(found):
        keys = [index.key(position) for position in found.tolist()]
        raise UserError(f"{len(found)} clips have the id {name}; give the key of one: {listed(keys)}")
    near = ids[pc.match_substring(ids.arrow, name, ignore_case=True).to_numpy(zero_copy_only=False)].tolist()
    hint = f"; ids that hold {name!r}: {listed(near)}" if near else f"; an id is, for instance, {ids[0]}"
    raise UserError(f"no clip has the id {name!r}{hint}")


def describe_clip(index: ShardIndex, position: int) -> dict[str, Any]:
    """Return all that is known of a clip: its place, measurements and annotations (empty ones left out)."""
    number = int(index.shard[position])
    shard, root = index.shards[number], index.roots[index.dataset[number]]
    first = int(np.searchsorted(index.shard, number))
    row: Mapping[str, Any] = read_table(root, shard).slice(position - first, 1).to_pylist()[0]
    place = {"position": position, "shard": str(root / shard.path), "offset": row["offset"], "bytes": row["size"]}
    sound = {
        "seconds": row["num_samples"] / RATE,
        "level_db": row["level_db"],
        "clipped": row["clipped"],
        "sound": row["sound"],
        "crc32": f"{row['crc32']:08x}",
    }
    annotations = {
        column: value for column, value in row.items() if column not in {*place, *sound, "key", "size", "num_samples", "extra"}
    }
    extra = json.loads(row["extra"]) if row["extra"] else {}
    known = {column: value for column, value in annotations.items() if value not in ("", None)}
    return {"key": row["key"]} | place | sound | known | {f"extra.{column}": value for column, value in extra.items()}


def extract_wav(index: ShardIndex, position: int, path: Path) -> None:
    """Write a clip's sound, checked, as 16 kHz 16-bit wav. Raises UserError if it is damaged or `path` cannot be written."""
    if path.suffix.lower() != ".wav":
        raise UserError(f"--extract {path}: give a name that ends in .wav")
    with ShardReader(index) as reader:
        samples = reader.read(position)
    try:
        with write_aside(path) as temporary:
            soundfile.write(temporary, samples, RATE, subtype="PCM_16", format="WAV")
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def _several(index: ShardIndex) -> bool:
    return len({shard.corpus for shard in index.shards}) > 1
