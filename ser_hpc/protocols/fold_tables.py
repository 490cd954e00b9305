"""Print planned folds, in 80 columns whatever their number: a row a fold, then a row a class.

Counts of each class in each fold would be a table too wide to read; what a person looks for in it is where a class gets scarce,
so a class's row has the fewest and the most clips that a fold gives it. Where it has none, the plan's notes name the folds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ser_hpc.core.errors import counted
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.protocols.folds import FoldPlan, Part

_PARTS = ("train", "dev", "test")


def make_fold_tables(plan: FoldPlan, classes: Sequence[str], targets: np.ndarray) -> list[Table]:
    """Make a table of the parts by fold, and one of the clips by class. `targets`: class index of every clip, or -1."""
    return [_folds(plan), _classes(plan, classes, targets)]


def _folds(plan: FoldPlan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("fold", "test", "dev", "train"):
        table.add_column(column, justify="right", no_wrap=True)
    others = _trains_on_the_rest(plan)
    for column in ("tested on", "epoch chosen on", *([] if others else ["trained on"])):
        table.add_column(column, overflow="fold")
    for fold in plan.folds:
        parts: tuple[Part, ...] = (fold.test, fold.dev, *(() if others else (fold.train,)))
        counts = [f"{len(part.positions):,}" for part in (fold.test, fold.dev, fold.train)]
        table.add_row(str(fold.index), *counts, *(Text(part.description) for part in parts))
    if others:
        table.caption, table.caption_justify, table.caption_style = "each is trained on all the others", "left", ""
    return table


def _classes(plan: FoldPlan, classes: Sequence[str], targets: np.ndarray) -> Table:
    """Make the table of classes, with counts over folds as `70 to 82`."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class", overflow="fold")
    in_a_fold = " in a fold" if len(plan.folds) > 1 else ""
    for column in ("clips", *(f"{part}{in_a_fold}" for part in _PARTS)):
        table.add_column(column, justify="right", no_wrap=True)
    used = np.unique(np.concatenate([fold.positions for fold in plan.folds]))
    total = np.bincount(targets[used], minlength=len(classes))
    counts = np.stack(
        [
            [np.bincount(targets[getattr(fold, part).positions], minlength=len(classes)) for part in _PARTS]
            for fold in plan.folds
        ]
    )  # (folds, parts, classes)
    for i, name in enumerate(classes):
        ranges = [_range(int(each.min()), int(each.max())) for each in counts[:, :, i].T]
        table.add_row(Text(name), f"{total[i]:,}", *ranges)
    return table


def _range(fewest: int, most: int) -> str:
    return f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"


def _trains_on_the_rest(plan: FoldPlan) -> bool:
    """Return whether every fold trains on all speakers of neither its dev nor its test part."""
    everyone = {speaker for fold in plan.folds for part in _PARTS for speaker in getattr(fold, part).speakers}
    return len(plan.folds) > 1 and all(
        set(fold.train.speakers) == everyone - set(fold.dev.speakers) - set(fold.test.speakers) for fold in plan.folds
    )


def print_folds(plan: FoldPlan, label_set: LabelSet, targets: np.ndarray, out: Console) -> None:
    """Print a plan, its notes, and whether it has leaks. `targets`: class index of every clip, or -1."""
    for table in make_fold_tables(plan, label_set.classes, targets):
        out.print("", table, sep="\n")
    out.print()
    for note in plan.notes:
        out.print(f"note: {note}")
    leaks = sum(note.startswith("LEAK") for note in plan.notes)
    verdict = Text.assemble(
        ("sound", "green"), ": no speaker and no identical sound is on two sides, and every class is trained"
    )
    if leaks:
        message = "sound only by the protocol's own definition"
        verdict = Text.assemble((message, "yellow"), f": {counted(leaks, 'leak')}, named above")
    out.print(verdict)
