"""Show a cross-validation on the terminal: a row per fold, the run's scores below."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from ser_hpc.results import markdown
from ser_hpc.results.cross_validation import CrossValidation
from ser_hpc.results.report_summary import (
    DEMO_NOTE,
    SCORE_NAMES,
    count_trials,
    incomplete_sentence,
    report_headline,
    task_sentence,
)

if TYPE_CHECKING:
    from rich.console import RenderableType


def to_terminal(cv: CrossValidation) -> RenderableType:
    """Lay out a row per fold (averaged over its seeds, once all of them are there), the run's scores below; for 80 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("fold", justify="right", no_wrap=True)
    table.add_column("tested on", max_width=20)  # alone gets narrower where the screen is; its words are cut, not broken
    for name in ("clips", *SCORE_NAMES.values(), "dev UAR"):
        table.add_column(name, justify="right", no_wrap=True)
    for fold in cv.plan["folds"]:
        trials = [t for t in cv.trials if t.trial.fold == fold["fold"]]
        scores = [
            markdown.format_score(float(np.mean([getattr(t, score) for t in trials])))
            for score in (*SCORE_NAMES, "dev_uar")
            if trials
        ]
        if any(m.trial.fold == fold["fold"] for m in cv.missing):
            scores = ["missing", "", "", "", ""]
        cells = (str(fold["fold"]), fold["test"]["description"], str(fold["test"]["num_clips"]), *scores)
        table.add_row(
            *(Text(cell, style="red" if cell == "missing" else "", no_wrap=True, overflow="ellipsis") for cell in cells)
        )
    if cv.scores:
        table.add_section()
        for field in ("mean", "std", "pooled"):
            values = [markdown.format_score(getattr(getattr(cv.scores, score), field)) for score in SCORE_NAMES]
            label = f"mean of {count_trials(cv.scores.num_trials)}" if field == "mean" else {"std": "± std"}.get(field, field)
            table.add_row("", Text(label), "", *values, style="" if field == "mean" else "dim")
    seeds = len(cv.plan["seeds"])
    title = Text.assemble((cv.plan["name"], "bold"), (f"  each fold: mean of {seeds} seeds" if seeds > 1 else "", "dim"))
    lines: list[RenderableType] = [*(Text(f"Warning: {each}", style="bold red") for each in cv.warnings), title, table]
    if cv.missing:
        lines += [Text(incomplete_sentence(cv), style="bold red")]
        lines += [Text(f"  {m.trial}: {shorten(m.reason, 240)}", style="red") for m in cv.missing]
    lines += [Text(task_sentence(task)) for task in cv.tasks]
    if cv.without_listening and (beside := cv.without_listening.short()):
        lines += [Text(beside)]
    lines += [Text(DEMO_NOTE, style="dim")] if cv.plan["demo"] else []
    return Group(*lines, Text(report_headline(cv).replace("**", "")))  # last, where it is looked for
