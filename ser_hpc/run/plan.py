"""Make and read plan.json: classes, folds and counts for reports and people, digests that bind predictions, all trials.

What is read must be what the launcher wrote, and ask for every fold with every seed: it is compared with the run's identity,
and that with its settings and labels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

import ser_hpc
from ser_hpc.config.tasks import MAIN
from ser_hpc.core.atomic_io import unseal, write_sealed
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.labels import DROPPED, LabelSet
from ser_hpc.run import identity
from ser_hpc.run.predictions import clip_hashes, clips_digest
from ser_hpc.run.run_dir import RunDir, Trial

if TYPE_CHECKING:  # the report reads plans, on login nodes: without pyarrow
    from ser_hpc.config.settings import Settings
    from ser_hpc.protocols.folds import FoldPlan, Part
    from ser_hpc.shards.index import ShardIndex
    from ser_hpc.tasks.task import Task

PLAN_FORMAT = 3
# What the formats 1 and 2 called some keys, of the plan and of a part of a fold: the old to the new one.
_NEW_KEYS = {"same_speakers": "speaker_aliases"}
_NEW_PART_KEYS = {"words": "description", "num": "num_clips"}
PARTS = ("train", "dev", "test")
_NEEDED = ("name", "demo", "classes", "label_set", "corpora", "dropped", "protocol", "notes", "seeds", "folds", "trials")
_PLAN_AGAIN = "launch the run again with the command that made it: it plans anew, and keeps what is trained"
_AT_ONCE = 1 << 20  # clips


def make_plan(
    settings: Settings,
    index: ShardIndex,
    label_set: LabelSet,
    targets: np.ndarray,
    folds: FoldPlan,
    seeds: Sequence[int],
    notes: Sequence[str],
    tasks: Sequence[Task],
    *,
    demo: bool,
) -> dict[str, Any]:
    """Return the plan as JSON.

    `targets`: class index of every clip of the index, -1 where it has none, (num_clips,); `tasks`: all, the main one first.
    """
    metadata = index.metadata
    dropped = Counter(label_set.annotations(metadata)[targets == DROPPED].tolist())
    hashes = _hashes(index, label_set, targets)

    def part_json(part: Part) -> dict[str, Any]:
        counts = np.bincount(targets[part.positions], minlength=len(label_set.classes))
        return {
            "description": part.description,
            "speakers": list(part.speakers),
            "sessions": list(part.sessions),
            "num_clips": len(part.positions),
            "seconds": round(float(metadata.seconds[part.positions].sum()), 1),
            "classes": dict(zip(label_set.classes, counts.tolist(), strict=True)),
            "digest": clips_digest(hashes[part.positions]),
        }

    others = {task.name: task.target.describe() | {"clips": _given(task, folds)} for task in tasks[1:]}
    return {
        "format": PLAN_FORMAT,
        "name": settings.run.name,
        "version": ser_hpc.__version__,
        "demo": demo,
        "classes": list(label_set.classes),
        "label_set": label_set.name,
        "corpora": metadata.corpus.occurring(),
        "num_clips": int((targets != DROPPED).sum()),
        "dropped": dict(sorted(dropped.items())),
        **({"tasks": others} if others else {}),
        **({"select_by": settings.train.select_by} if settings.train.select_by != MAIN else {}),
        "protocol": folds.protocol,
        "speaker_aliases": dict(settings.folds.speaker_aliases),
        "notes": [*folds.notes, *notes],
        "seeds": list(seeds),
        "folds": [{"fold": fold.index} | {name: part_json(getattr(fold, name)) for name in PARTS} for fold in folds.folds],
        "trials": [asdict(Trial(seed, fold.index)) for seed in seeds for fold in folds.folds],
        "folds_digest": folds.digest,
        "fingerprint": index.fingerprint,
    }


def _given(task: Task, folds: FoldPlan) -> dict[str, list[int]]:
    """Count, part by part, the clips of each fold that have a target of the task."""
    given = [task.target.is_given(task.in_fold(fold.train.positions).values) for fold in folds.folds]
    return {
        name: [int(of_fold[getattr(fold, name).positions].sum()) for fold, of_fold in zip(folds.folds, given, strict=True)]
        for name in PARTS
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


def write_plan(run: RunDir, plan: dict[str, Any], schema: int) -> None:
    """Write the plan of a run under that schema of the settings: an earlier one keeps the format that its own code reads."""
    if schema < 3:
        old, old_in_part = ({new: old for old, new in keys.items()} for keys in (_NEW_KEYS, _NEW_PART_KEYS))
        plan = _with_keys(plan, old, old_in_part) | {"format": 2}
    write_sealed(run.plan, plan)


def _with_keys(plan: dict[str, Any], keys: Mapping[str, str], part_keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the plan with other names of its keys, and of those of its folds' parts."""

    def renamed(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
        return {names.get(key, key): value for key, value in record.items()}

    folds = [fold | {part: renamed(fold[part], part_keys) for part in PARTS} for fold in plan["folds"]]
    return renamed(plan, keys) | {"folds": folds}


def read_plan(run: RunDir) -> dict[str, Any]:
    """Return the plan, if it is the one that was written and asks for every fold with every seed: else a mean over its trials
    would be one over some. One of an earlier format is returned with today's keys. Raises UserError."""
    plan = run.read_plan()
    if plan.get("format") not in range(1, PLAN_FORMAT + 1):
        raise UserError(f"{run.plan} has format {plan.get('format')!r}; this version reads the formats 1 to {PLAN_FORMAT}")
    if plan["format"] > 1 or run.identity.exists():
        plan = _as_planned(run, plan)
    if lacking := [name for name in _NEEDED if name not in plan]:
        raise UserError(f"{run.plan} is damaged: it lacks {listed(lacking)}; launch the run again: that plans anew")
    every = {Trial(seed, fold["fold"]) for seed in plan["seeds"] for fold in plan["folds"]}
    if not every or len(plan["trials"]) != len(every) or {Trial(**trial) for trial in plan["trials"]} != every:
        raise UserError(f"{run.plan} is damaged: its trials are not each of its folds once with each of its seeds")
    if others := [trial for trial in run.trials_on_disk() if trial not in every and run.trial(trial).is_done]:
        raise UserError(
            f"{run.path} holds trials that its plan does not ask for: {listed(others)}; {_PLAN_AGAIN}, or remove them"
        )
    return plan if plan["format"] == PLAN_FORMAT else _with_keys(plan, _NEW_KEYS, _NEW_PART_KEYS)


def _as_planned(run: RunDir, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the plan without its checksum, compared with the run's identity, and that with settings and labels."""
    try:
        plan = unseal(plan)
    except ValueError as error:
        raise UserError(f"{run.plan}: {error}; {_PLAN_AGAIN}") from error
    if (recorded := identity.read_identity(run)) is None:
        raise UserError(f"{run.identity} is missing: nothing says which experiment this run is; {_PLAN_AGAIN}")
    identity.check_identity(run, recorded)
    folds = [fold_digest(fold) for fold in plan["folds"]]
    if lost := sorted(set(recorded.seeds) ^ set(plan["seeds"])):
        raise UserError(f"{run.plan} and {run.identity} do not name the same seeds (seed {listed(lost)}); {_PLAN_AGAIN}")
    if folds != list(recorded.folds):
        numbers = [
            k for k in range(max(len(folds), len(recorded.folds))) if folds[k : k + 1] != list(recorded.folds[k : k + 1])
        ]
        raise UserError(f"{run.plan} and {run.identity} do not name the same folds (fold {listed(numbers)}); {_PLAN_AGAIN}")
    if plan["fingerprint"] != recorded.identity.content["shards"]:
        raise UserError(f"{run.plan} is the plan of other shards than {run.identity} names; {_PLAN_AGAIN}")
    if plan["run"] != recorded.identity.digest:
        raise UserError(f"{run.plan} is the plan of another run ({plan['run'][:8]}); {_PLAN_AGAIN}")
    return plan


def fold_digest(fold: dict[str, Any]) -> str:
    """Hash all clips of a fold, as plan.json has it, with their speakers and true classes, part by part: SHA-256 in hex."""
    return hashlib.sha256("".join(fold[part]["digest"] for part in PARTS).encode()).hexdigest()
