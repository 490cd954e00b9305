"""Make the content of plan.json: classes, folds and counts for reports and people, and digests that bind predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

import ser_hpc
from ser_hpc.config.settings import Settings
from ser_hpc.corpora.labels import DROPPED, LabelSet
from ser_hpc.protocols.folds import FoldPlan, Part
from ser_hpc.run.plan_file import PLAN_FORMAT
from ser_hpc.run.predictions import clip_hashes, clips_digest
from ser_hpc.run.run_dir import Trial
from ser_hpc.shards.index import ShardIndex

PARTS = ("train", "dev", "test")
_AT_ONCE = 1 << 20


def make_plan(
    settings: Settings,
    index: ShardIndex,
    label_set: LabelSet,
    targets: np.ndarray,
    folds: FoldPlan,
    seeds: Sequence[int],
    notes: Sequence[str],
    *,
    demo: bool,
) -> dict[str, Any]:
    """Return the plan as JSON. `targets`: class index of every clip of the index, -1 where it has none, (num_clips,)."""
    metadata = index.metadata
    dropped = Counter(label_set.annotations(metadata)[targets == DROPPED].tolist())
    hashes = _hashes(index, label_set, targets)

    def part_json(part: Part) -> dict[str, Any]:
        counts = np.bincount(targets[part.positions], minlength=len(label_set.classes))
        return {
            "words": part.description,
            "speakers": list(part.speakers),
            "sessions": list(part.sessions),
            "num": len(part.positions),
            "seconds": round(float(metadata.seconds[part.positions].sum()), 1),
            "classes": dict(zip(label_set.classes, counts.tolist(), strict=True)),
            "digest": clips_digest(hashes[part.positions]),
        }

    return {
        "format": PLAN_FORMAT,
        "name": settings.run.name,
        "version": ser_hpc.__version__,
        "demo": demo,
        "classes": list(label_set.classes),
        "label_set": label_set.name,
        "corpora": sorted(set(metadata.corpus.tolist())),
        "num_clips": int((targets != DROPPED).sum()),
        "dropped": dict(sorted(dropped.items())),
        "protocol": folds.protocol,
        "same_speakers": dict(settings.folds.speaker_aliases),
        "notes": [*folds.notes, *notes],
        "seeds": list(seeds),
        "folds": [{"fold": fold.index} | {name: part_json(getattr(fold, name)) for name in PARTS} for fold in folds.folds],
        "trials": [asdict(Trial(seed, fold.index)) for seed in seeds for fold in folds.folds],
        "folds_digest": folds.digest,
        "fingerprint": index.fingerprint,
    }


def _hashes(index: ShardIndex, label_set: LabelSet, targets: np.ndarray) -> np.ndarray:
    """Hash corpus, id, speaker and true class of each clip that has a class, uint64 (num_clips,); 0 for the others."""
    metadata = index.metadata
    hashes = np.zeros(len(metadata), dtype=np.uint64)
    used = np.flatnonzero(targets != DROPPED)
    for start in range(0, len(used), _AT_ONCE):  # the words of all clips at once would be gigabytes
        some = used[start : start + _AT_ONCE]
        truths = (label_set.classes[target] for target in targets[some].tolist())
        columns = (metadata.corpus[some], metadata.utterance_id[some].tolist(), metadata.speaker[some], truths)
        hashes[some] = clip_hashes(*columns)
    return hashes
