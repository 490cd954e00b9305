"""Tabulate a cross-validation for people: the same tables in report.md and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ser_hpc.results import markdown
from ser_hpc.results.cross_validation import CrossValidation, Scores, SeedScores, TrialScores
from ser_hpc.results.groups import Group, shown_groups
from ser_hpc.results.intervals import Interval
from ser_hpc.results.report_summary import SCORE_NAMES
from ser_hpc.results.run_panel import Panel

MOST_SPEAKERS = 24  # in a table


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts: `rows` (n, len(header)); the columns of which `left` has the numbers hold words, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = ()


def score_table(scores: Scores) -> Table:
    """Tabulate the scores of a run."""

    def row(score: str) -> list[str]:
        of = getattr(scores, score)
        return [SCORE_NAMES[score], *(markdown.format_score(value) for value in (of.mean, of.std, of.pooled))]

    return Table(["score", "mean", "± std", "pooled"], [row(score) for score in SCORE_NAMES], left=(0,))


def trial_table(cv: CrossValidation) -> Table:
    """Tabulate the trials, those that are missing too."""

    def row(t: TrialScores) -> list[str]:
        scores = [markdown.format_score(getattr(t, score)) for score in (*SCORE_NAMES, "dev_uar")]
        return [str(t.trial.seed), str(t.trial.fold), *scores, str(t.best_epoch + 1), str(t.num_test)]

    rows = {t.trial: row(t) for t in cv.trials}
    rows |= {m.trial: [str(m.trial.seed), str(m.trial.fold), "missing", *[""] * 6] for m in cv.missing}
    ordered = [rows[trial] for trial in sorted(rows)]
    return Table(["seed", "fold", *SCORE_NAMES.values(), "dev UAR", "epoch", "clips"], ordered)


def task_table(cv: CrossValidation) -> Table:
    """Tabulate the scores of tasks beside the main one."""
    rows = [
        [
            task.name if number == 0 else "",
            str(task.num_clips) if number == 0 else "",
            score.replace("_", " "),
            *(markdown.format_score(of[score]) for of in (task.mean, task.std, task.pooled)),
            f"{task.chance:.3f}" if score == task.best else "",
        ]
        for task in cv.tasks
        for number, score in enumerate(task.mean)
    ]
    return Table(["task", "clips", "score", "mean", "± std", "pooled", "chance"], rows, left=(0, 2))


def class_table(cv: CrossValidation, scores: Scores) -> Table:
    """Tabulate each class's recall and F1, what they rest on, and what the class is mistaken for most often."""
    rows = []
    for i, name in enumerate(cv.classes):
        wrong = scores.confusion[i].copy()
        wrong[i] = 0
        total, most = int(scores.confusion[i].sum()), int(wrong.argmax())
        taken = f"{cv.classes[most]} ({wrong[most] / total:.0%})" if wrong[most] else ""
        of = cv.by_class[i]
        scored = [_with_interval(of.recall, of.recall_interval), _with_interval(of.f1, of.f1_interval)]
        rows.append([name, *scored, str(of.num_clips), str(of.num_speakers or ""), taken])
    return Table(["class", "recall", "F1", "clips", "speakers", "most often taken for"], rows, left=(0, 1, 2, 5))


def group_table(groups: Sequence[Group]) -> Table:
    """Tabulate the groups; of many speakers those with the lowest and the highest UAR."""
    rows = [
        [
            group.by,
            group.name,
            str(group.num_clips),
            "" if group.num_speakers is None else str(group.num_speakers),
            f"{markdown.format_score(group.uar)} {markdown.format_bounds(group.interval.bounds)}".rstrip(),
            markdown.format_score(group.wa),
        ]
        for group in shown_groups(groups, MOST_SPEAKERS)
    ]
    return Table(["by", "group", "clips", "speakers", "UAR", "WA"], rows, left=(0, 1, 4))


def _with_interval(score: float, interval: Interval) -> str:
    bounds = f" [{interval.bounds[0]:.2f}, {interval.bounds[1]:.2f}]" if interval.bounds else ""
    return markdown.format_score(score) + bounds


def fold_table(cv: CrossValidation) -> Table:
    """Tabulate who is in which part of which fold."""
    rows = []
    for fold in cv.plan["folds"]:
        for part in ("test", "dev", "train"):
            p = fold[part]
            rows.append(
                [
                    str(fold["fold"]) if part == "test" else "",
                    part,
                    p["description"],
                    str(p["num_clips"]),
                    f"{p['seconds'] / 60:.1f}",
                ]
            )
    return Table(["fold", "part", "who", "clips", "minutes"], rows, left=(1, 2))


def seed_table(seeds: Sequence[SeedScores]) -> Table:
    """Tabulate the UAR of each seed over all its folds."""
    rows = [[str(s.seed), markdown.format_score(s.mean), markdown.format_score(s.pooled)] for s in seeds]
    return Table(["seed", "mean", "pooled"], rows)


def panel_table(panel: Panel) -> Table:
    """Tabulate what is reached without listening."""
    rows = [
        [row.name, row.interval.reason or "", "", ""]
        if row.uar is None
        else [
            row.name,
            markdown.format_score(row.uar),
            markdown.format_bounds(row.interval.bounds),
            "" if row.control is None else markdown.format_score(row.control),
        ]
        for row in panel.rows
    ]
    return Table(["from this alone", "UAR", "95% interval", "control"], rows, left=(0, 1, 2))


def confusion_tables(cv: CrossValidation, scores: Scores) -> tuple[Table, Table]:
    """Tabulate predictions by true and predicted class: their number, and percent of the true class."""
    header = ["true \\ predicted", *markdown.shorten_names(cv.classes)]
    totals = scores.confusion.sum(-1, keepdims=True)
    percent = 100 * scores.confusion / np.maximum(totals, 1)
    counts = [[name, *map(str, row)] for name, row in zip(cv.classes, scores.confusion, strict=True)]
    shares = [
        [name, *(f"{share:.0f}" if total else "-" for share in row)]
        for name, row, total in zip(cv.classes, percent, totals[:, 0], strict=True)
    ]
    return Table(header, counts, left=(0,)), Table(header, shares, left=(0,))
