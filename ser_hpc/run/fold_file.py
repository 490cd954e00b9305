"""Keep a run's folds beside its plan, so that its ranks read them instead of planning ten million clips again.

    RUN/folds.npy       int8 (num_folds, num_clips): the side of every clip in every fold, as `clip_table` numbers them

Nothing is believed of the file: the folds that it gives are those that were planned and checked at launch if they have the
digest in plan.json, over every clip's name and every position. Without such a file the folds are planned anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.corpora.utterance import Metadata
from ser_hpc.protocols.clip_table import DEV, NOWHERE, TEST, TRAIN
from ser_hpc.protocols.folds import Fold, FoldPlan, Part, digest_folds
from ser_hpc.run.run_dir import RunDir

_SIDES = {"train": TRAIN, "dev": DEV, "test": TEST}


def write_folds(run: RunDir, folds: FoldPlan, num_clips: int) -> None:
    """Write the sides of all clips of the index, whose parts `folds` names by position."""
    with write_aside(run.folds) as temporary, temporary.open("wb") as file:
        header = {"descr": "|i1", "fortran_order": False, "shape": (len(folds.folds), num_clips)}
        np.lib.format.write_array_header_1_0(file, header)
        for fold in folds.folds:
            side = np.full(num_clips, NOWHERE, dtype=np.int8)
            for name, number in _SIDES.items():
                side[getattr(fold, name).positions] = number
            file.write(side.tobytes())


def read_folds(run: RunDir, plan: dict[str, Any], metadata: Metadata, other_notes: Sequence[str]) -> FoldPlan | None:
    """Return the folds of a run as they were planned; None where that cannot be told, and they are to be planned anew.

    `plan`: plan.json, as `read_plan` returns it; `other_notes`: those that follow its folds' notes there.
    """
    notes = plan["notes"][: len(plan["notes"]) - len(other_notes)]
    if plan["notes"] != [*notes, *other_notes]:
        return None
    try:
        sides = np.load(run.folds, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if sides.dtype != np.int8 or sides.shape != (len(plan["folds"]), len(metadata)):
        return None

    def part(side: np.ndarray, fold: dict[str, Any], name: str) -> Part:
        told = fold[name]
        return Part(told["description"], np.flatnonzero(side == _SIDES[name]), tuple(told["speakers"]), tuple(told["sessions"]))

    folds = tuple(
        Fold(fold["fold"], *(part(side, fold, name) for name in _SIDES))
        for side, fold in zip(sides, plan["folds"], strict=True)
    )
    digest = digest_folds(metadata, folds)
    return FoldPlan(plan["protocol"], folds, tuple(notes), digest) if digest == plan["folds_digest"] else None
