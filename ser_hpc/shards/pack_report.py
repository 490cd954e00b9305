"""Make the report of a packing: counts and findings, the same for the same corpus on any machine (pack_report.json)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ser_hpc.core.errors import counted, listed
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards import RATE
from ser_hpc.shards.index import REPORT, Shard
from ser_hpc.shards.quality import KINDS, Finding, FindingKind, QualityRules
from ser_hpc.shards.storage import Location

if TYPE_CHECKING:
    from ser_hpc.shards.shard_file import Written

COUNTED = ("emotion", "speaker", "session", "gender", "split")


@dataclass(frozen=True, slots=True)
class ClipCount:
    """Number of clips that share a value, and their seconds of sound."""

    clips: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PackReport:
    """The result of packing. `counts[corpus][column][value]`: packed clips, for columns in COUNTED that the corpus annotates.

    `left_out`: (path, reason) of files that the parser passed over. `kept` of the shards were finished before this run.
    `fingerprinted`: near-duplicates were looked for.
    """

    clips: int
    seconds: float
    bytes: int
    shards: int
    kept: int
    counts: dict[str, dict[str, dict[str, ClipCount]]]
    rules: QualityRules
    findings: tuple[Finding, ...]
    left_out: tuple[tuple[Path, str], ...]
    fingerprinted: bool = False

    def of(self, kind: FindingKind) -> tuple[Finding, ...]:
        """Return the findings of one kind."""
        return tuple(found for found in self.findings if found.kind == kind)

    def as_json(self) -> dict[str, Any]:
        """Return the content of pack_report.json: nothing that depends on this run or this machine."""
        return {
            "clips": self.clips,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "shards": self.shards,
            "longest_s": self.rules.longest_s,
            "findings": {
                kind: {
                    "policy": self.rules.policies[kind],
                    "clips": [{"key": found.key, "source": found.path.name, "detail": found.detail} for found in self.of(kind)],
                }
                for kind in KINDS
                if kind != "near_duplicate" or self.fingerprinted
            },
            "left_out": [{"source": path.name, "reason": reason} for path, reason in self.left_out],
            "counts": {
                corpus: {
                    column: {value: asdict(count) for value, count in values.items()} for column, values in columns.items()
                }
                for corpus, columns in self.counts.items()
            },
        }


def packing_notes(root: Location) -> list[str]:
    """Return sentences on what packing found that a reader of scores must know; none where there is no report."""
    try:
        report = json.loads((root / REPORT).read_bytes())
        corpora = listed(sorted(report["counts"]))
        found = {kind: report["findings"][kind] for kind in report["findings"] if report["findings"][kind]["clips"]}
        left_out = {kind: len(one["clips"]) for kind, one in found.items() if one["policy"] == "drop"}
        # The folds' own notes tell of near-duplicates, also of those that were looked for later.
        packed = {kind: one["clips"] for kind, one in found.items() if one["policy"] == "keep" and kind != "near_duplicate"}
        notes = []
        if left_out:
            each = listed([f"{kind} {number}" for kind, number in left_out.items()])
            notes.append(f"{corpora}: packing left out {counted(sum(left_out.values()), 'clip')} ({each}; all in {REPORT}).")
        for kind, clips in packed.items():
            some = listed([clip["key"] for clip in clips], 4)
            notes.append(f"{corpora}: {counted(len(clips), 'clip')} kept as {kind}: {some} (all in {REPORT}).")
        return notes
    except FileNotFoundError:
        return []
    except (OSError, KeyError, TypeError, ValueError) as error:
        return [f"{root / REPORT} cannot be read ({error!r}): what packing found in the clips is not known."]


def make_pack_report(
    written: Sequence[Written],
    findings: Sequence[Finding],
    rules: QualityRules,
    left_out: Sequence[tuple[Path, str]],
    kept: int,
    fingerprinted: bool = False,
) -> PackReport:
    """Make the report of some shards. `kept`: how many of them an earlier run had finished; `fingerprinted`: near-duplicates
    were looked for."""
    shards: list[Shard] = [result.shard for result in written if result.shard is not None]
    packed = [
        (utterance, clip.num_samples)
        for result in written
        for utterance, clip in zip(result.plan.utterances, result.clips, strict=True)
        if clip.key in result.packed
    ]
    return PackReport(
        clips=len(packed),
        seconds=round(sum(samples for _, samples in packed) / RATE, 3),
        bytes=sum(shard.bytes for shard in shards),
        shards=len(shards),
        kept=kept,
        counts={
            corpus: _counts([clip for clip in packed if clip[0].corpus == corpus])
            for corpus in sorted({utterance.corpus for utterance, _ in packed})
        },
        rules=rules,
        findings=tuple(findings),
        left_out=tuple(sorted(left_out)),
        fingerprinted=fingerprinted,
    )


def _counts(packed: Sequence[tuple[Utterance, int]]) -> dict[str, dict[str, ClipCount]]:
    """Count clips and seconds per value of each counted column; columns that the corpus does not annotate are left out."""
    counts = {}
    for column in COUNTED:
        samples: dict[str, list[int]] = defaultdict(list)
        for utterance, length in packed:
            samples[getattr(utterance, column)].append(length)
        if set(samples) != {""}:
            counts[column] = {
                value: ClipCount(len(lengths), round(sum(lengths) / RATE, 3)) for value, lengths in sorted(samples.items())
            }
    return counts
