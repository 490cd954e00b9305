"""Open the clips of a run as they were planned, with their classes and folds, and nothing else of the run: for reports.

Weights, code from outside and the model are not looked at, as a job does: they may be gone when a run is reported on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ser_hpc.config.load import load_run_settings
from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.protocols.folds import FoldPlan
from ser_hpc.run.experiment import shard_folders
from ser_hpc.run.fold_file import read_folds
from ser_hpc.run.run_dir import RunDir
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.pack_report import packing_notes


@dataclass(frozen=True, slots=True)
class PlannedClips:
    """The clips of a run. `targets`: class index of every clip of the index, -1 where it has none, (num_clips,)."""

    index: ShardIndex
    targets: np.ndarray
    folds: FoldPlan


def open_planned_clips(run: RunDir, plan: dict[str, Any]) -> PlannedClips:
    """Open them; `plan`: as `read_plan` returns it. Raises UserError where shards, labels or folds are not there as planned."""
    index = ShardIndex.load(*shard_folders(load_run_settings(run.settings)))
    if index.fingerprint != plan["fingerprint"]:
        raise UserError("the shards are others than those that the run was planned from")
    notes = tuple(note for root in index.roots for note in packing_notes(root))
    if (folds := read_folds(run, plan, index.metadata, notes)) is None:
        raise UserError(f"{run.folds} does not hold the folds as they were planned; launch the run again, which writes it")
    return PlannedClips(index, labels.load_label_set(run.labels).targets(index.metadata), folds)
