"""Keep a run's folds beside its plan, so that its ranks read them instead of planning ten million clips again.

    RUN/folds.npy       int8 (num_folds, num_clips): the side of every clip in every fold, as `clip_table` numbers them

Nothing is believed of the file: the folds that it gives are those that were planned and checked at launch if they have the
digest in plan.json, over every clip's name and every position. Without such a file the folds are planned anew.
"""

from __future__ import annotations

import io
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
        file.write(_header(len(folds.folds), num_clips))
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
    if (sides := _read_sides(run, len(plan["folds"]), len(metadata))) is None:
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


def _read_sides(run: RunDir, num_folds: int, num_clips: int) -> list[np.ndarray] | None:
    """Read the side of every clip, int8 (num_clips,) for each fold; None where the file is not one of such a shape.

    Not by np.load: it opens archives too, parses a damaged header, and a mapped page that cannot be read ends the process.
    """
    header = _header(num_folds, num_clips)
    try:
        if run.folds.stat().st_size != len(header) + num_folds * num_clips:
            return None
        with run.folds.open("rb") as file:
            if file.read(len(header)) != header:
                return None
            return [np.frombuffer(file.read(num_clips), np.int8) for _ in range(num_folds)]
    except (OSError, ValueError):
        return None


def _header(num_folds: int, num_clips: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|i1", "fortran_order": False, "shape": (num_folds, num_clips)})
    return header.getvalue()
