"""What was packed: counts, what was left out and why, identical sounds. The same for the same corpus, run after run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ser_hpc.shards.audio import RATE
from ser_hpc.shards.index import Shard

COUNTED = ("emotion", "speaker", "session", "gender", "split")


@dataclass(frozen=True, slots=True)
class BadClip:
    """A clip that cannot be packed, and why in words; its key is "" if it is a file that the parser left out."""

    key: str
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Count:
    """Clips that share a value, and their sound."""

    clips: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PackReport:
    """`counts[corpus][column][value]` for the columns in COUNTED; `identical` holds the keys of each group of equal sounds.

    `clipped` clips had samples beyond full scale. `kept` of the shards were finished before this run.
    """

    clips: int
    seconds: float
    bytes: int
    shards: int
    kept: int
    clipped: int
    counts: dict[str, dict[str, dict[str, Count]]]
    skipped: tuple[BadClip, ...]
    identical: tuple[tuple[str, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """The content of pack_report.json: nothing that depends on this run or this machine."""
        return {
            "clips": self.clips,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "shards": self.shards,
            "clipped": self.clipped,
            "counts": {
                corpus: {
                    column: {value: {"clips": count.clips, "seconds": count.seconds} for value, count in values.items()}
                    for column, values in columns.items()
                }
                for corpus, columns in self.counts.items()
            },
            "skipped": [{"key": bad.key, "source": bad.path.name, "reason": bad.reason} for bad in self.skipped],
            "identical": [list(keys) for keys in self.identical],
        }


def make(shards: Sequence[Shard], table: pa.Table, skipped: Sequence[BadClip], kept: int) -> PackReport:
    """The report of a dataset from the rows of all its shards."""
    columns = {name: table.column(name).to_pylist() for name in ("key", "sound", "corpus", "num_samples", *COUNTED)}
    sounds: dict[str, list[str]] = defaultdict(list)
    for key, sound in zip(columns["key"], columns["sound"], strict=True):
        sounds[sound].append(key)
    return PackReport(
        clips=table.num_rows,
        seconds=round(sum(columns["num_samples"]) / RATE, 3),
        bytes=sum(shard.bytes for shard in shards),
        shards=len(shards),
        kept=kept,
        clipped=sum(clipped > 0 for clipped in table.column("clipped").to_pylist()),
        counts={corpus: _counts(columns, corpus) for corpus in sorted(set(columns["corpus"]))},
        skipped=tuple(sorted(skipped, key=lambda bad: (bad.key, bad.path))),
        identical=tuple(sorted(tuple(sorted(keys)) for keys in sounds.values() if len(keys) > 1)),
    )


def _counts(columns: dict[str, list[Any]], corpus: str) -> dict[str, dict[str, Count]]:
    """Clips and seconds per value of each counted column; columns that the corpus does not annotate are left out."""
    counts = {}
    for column in COUNTED:
        samples: dict[str, list[int]] = defaultdict(list)
        for value, of, length in zip(columns[column], columns["corpus"], columns["num_samples"], strict=True):
            if of == corpus:
                samples[value].append(length)
        if set(samples) != {""}:
            counts[column] = {
                value: Count(len(lengths), round(sum(lengths) / RATE, 3)) for value, lengths in sorted(samples.items())
            }
    return counts
