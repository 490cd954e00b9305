"""Make the content of report.md: a cross-validation for people, with tables that read well as plain text too."""

from __future__ import annotations

from collections.abc import Iterator

from ser_hpc.results import markdown, report_tables
from ser_hpc.results.cross_validation import CrossValidation, Scores
from ser_hpc.results.report_summary import (
    HOW_PANEL,
    absent_classes,
    calibration_sentence,
    counted_predictions,
    incomplete_sentence,
    protocol_words,
    reading_notes,
    report_headline,
    report_notes,
    unseen_groups,
)
from ser_hpc.results.report_tables import Table
from ser_hpc.results.without_listening import WithoutListening


def to_markdown(cv: CrossValidation) -> str:
    """Return the content of `report.md`; its tables are aligned for those who read it as plain text."""
    paragraphs = [f"# {cv.plan['name']}"]
    if cv.warnings:
        paragraphs += [markdown.bullets(f"**Warning: {warning}**" for warning in cv.warnings)]
    if cv.missing:
        paragraphs += [f"**{incomplete_sentence(cv)}**", markdown.bullets(f"{m.trial}: {m.reason}" for m in cv.missing)]
    paragraphs += [report_headline(cv)]
    if cv.without_listening:
        paragraphs += [cv.without_listening.meaning(cv.scores.uar.pooled if cv.scores else None)]
    if cv.about:
        paragraphs += ["## What was trained", markdown.bullets(f"{topic}: {text}" for topic, text in cv.about.items())]
    if cv.finished:
        over = f" (the {len(cv.trials)} finished trials only)" if cv.missing else ""
        if cv.scores:
            paragraphs += ["## Scores", _table(report_tables.score_table(cv.scores))]
        if len(cv.seeds) > 1:
            paragraphs += ["UAR of each seed, over all its folds:", _table(report_tables.seed_table(cv.seeds))]
        if cv.without_listening:
            paragraphs += ["## Without listening", *_beside(cv.without_listening)]
        if cv.tasks:
            paragraphs += [f"## Other tasks{over}", _table(report_tables.task_table(cv))]
        paragraphs += [f"## Classes{over}", _table(report_tables.class_table(cv, cv.finished))]
        paragraphs += [f"## Confusion{over}", *_confusion(cv, cv.finished)]
        if cv.details and cv.details.groups:
            paragraphs += [f"## Groups{over}", _table(report_tables.group_table(cv.details.groups)), *unseen_groups(cv)]
        if cv.details:
            paragraphs += [f"## Confidence{over}", calibration_sentence(cv.details)]
        paragraphs += [
            "## Trials",
            _table(report_tables.trial_table(cv)),
            *absent_classes(cv),
        ]  # behind what sums them up: there may be a thousand
    paragraphs += ["## Folds", protocol_words(cv.plan), _table(report_tables.fold_table(cv))]
    paragraphs += [
        "## Notes",
        markdown.bullets(report_notes(cv)),
        markdown.bullets(reading_notes(cv)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _beside(beside: WithoutListening) -> Iterator[str]:
    """Tabulate the shortcut panel, and say what else the scores are to be held against."""
    if beside.panel:
        yield _table(report_tables.panel_table(beside.panel))
        yield HOW_PANEL
    if remarks := beside.remarks():
        yield markdown.bullets(remarks)


def _confusion(cv: CrossValidation, scores: Scores) -> tuple[str, str, str, str]:
    counts, shares = report_tables.confusion_tables(cv, scores)
    return f"{counted_predictions(cv)}:", _table(counts), "Percent of the true class:", _table(shares)


def _table(of: Table) -> str:
    return markdown.table(of.header, of.rows, of.left)
