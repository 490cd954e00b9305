"""Make the content of report.md: a cross-validation for people, with tables that read well as plain text too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ser_hpc.results import markdown
from ser_hpc.results.cross_validation import CrossValidation, Scores, TrialScores
from ser_hpc.results.intervals import Interval
from ser_hpc.results.report_summary import SCORE_NAMES, incomplete_sentence, interval_notes, report_headline, report_notes
from ser_hpc.results.without_listening import WithoutListening

_READING = (
    "UAR: mean of the recalls of the classes that occur in the test part; WA: accuracy; macro-F1 over the same classes as UAR; "
    "kappa: Cohen's.",
    "Mean and standard deviation are over trials (every fold with every seed). Pooled: the test clips of all folds of a seed "
    "as one set, averaged over seeds.",
    "Each trial's epoch, counted from 1, is the one with the best dev {chosen_by}; its test part has no say in it.",
)
_HOW = (
    "Logistic regression on the folds of this run, trained on the training parts; pooled as above. Control: labels exchanged "
    "within each speaker. The long-term spectrum is of the microphone and the room, but of the voice too."
)


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
            paragraphs += ["## Scores", _score_table(cv.scores)]
        if len(cv.seeds) > 1:
            rows = [[str(s.seed), markdown.format_score(s.mean), markdown.format_score(s.pooled)] for s in cv.seeds]
            paragraphs += ["UAR of each seed, over all its folds:", markdown.table(["seed", "mean", "pooled"], rows)]
        if cv.without_listening:
            paragraphs += ["## Without listening", *_beside(cv.without_listening)]
        if cv.tasks:
            paragraphs += [f"## Other tasks{over}", _task_table(cv)]
        paragraphs += [f"## Classes{over}", _class_table(cv, cv.finished)]
        paragraphs += [f"## Confusion{over}", *_confusion_tables(cv, cv.finished)]
        paragraphs += ["## Trials", _trial_table(cv), *_absent_classes(cv)]  # behind what sums them up: there may be a thousand
    paragraphs += ["## Folds", f"Protocol: {markdown.one_line(cv.plan['protocol'])}", _fold_table(cv)]
    paragraphs += [
        "## Notes",
        markdown.bullets(report_notes(cv)),
        markdown.bullets(_reading(cv)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _score_table(scores: Scores) -> str:
    def row(score: str) -> list[str]:
        of = getattr(scores, score)
        return [SCORE_NAMES[score], *(markdown.format_score(value) for value in (of.mean, of.std, of.pooled))]

    return markdown.table(["score", "mean", "± std", "pooled"], [row(score) for score in SCORE_NAMES], left=(0,))


def _beside(beside: WithoutListening) -> Iterator[str]:
    """Tabulate the shortcut panel, and say what else the scores are to be held against."""
    if beside.panel:
        rows = [
            [row.name, row.interval.reason or "", "", ""]
            if row.uar is None
            else [
                row.name,
                markdown.format_score(row.uar),
                markdown.format_bounds(row.interval.bounds),
                "" if row.control is None else markdown.format_score(row.control),
            ]
            for row in beside.panel.rows
        ]
        yield markdown.table(["from this alone", "UAR", "95% interval", "control"], rows, left=(0, 1, 2))
        yield _HOW
    if remarks := beside.remarks():
        yield markdown.bullets(remarks)


def _reading(cv: CrossValidation) -> Iterator[str]:
    """Yield how the scores are to be read; the last line names the dev score that chose the epochs."""
    yield from interval_notes(cv)
    yield from (line.format(chosen_by=cv.plan.get("select_by", "UAR")) for line in _READING)


def _trial_table(cv: CrossValidation) -> str:
    def row(t: TrialScores) -> list[str]:
        scores = [markdown.format_score(getattr(t, score)) for score in (*SCORE_NAMES, "dev_uar")]
        return [str(t.trial.seed), str(t.trial.fold), *scores, str(t.best_epoch + 1), str(t.num_test)]

    rows = {t.trial: row(t) for t in cv.trials}
    rows |= {m.trial: [str(m.trial.seed), str(m.trial.fold), "missing", *[""] * 6] for m in cv.missing}
    ordered = [rows[trial] for trial in sorted(rows)]
    return markdown.table(["seed", "fold", *SCORE_NAMES.values(), "dev UAR", "epoch", "clips"], ordered)


def _task_table(cv: CrossValidation) -> str:
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
    return markdown.table(["task", "clips", "score", "mean", "± std", "pooled", "chance"], rows, left=(0, 2))


def _absent_classes(cv: CrossValidation) -> list[str]:
    absent = {t.trial.fold: t.absent_classes for t in cv.trials if t.absent_classes}
    if not absent:
        return []
    listed_folds = "; ".join(f"{', '.join(names)} in fold {fold}" for fold, names in sorted(absent.items()))
    return [f"Without a test clip, and left out of UAR and macro-F1 there: {listed_folds}."]


def _class_table(cv: CrossValidation, scores: Scores) -> str:
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
    return markdown.table(["class", "recall", "F1", "clips", "speakers", "most often taken for"], rows, left=(0, 1, 2, 5))


def _with_interval(score: float, interval: Interval) -> str:
    bounds = f" [{interval.bounds[0]:.2f}, {interval.bounds[1]:.2f}]" if interval.bounds else ""
    return markdown.format_score(score) + bounds


def _confusion_tables(cv: CrossValidation, scores: Scores) -> tuple[str, str, str, str]:
    header = ["true \\ predicted", *markdown.shorten_names(cv.classes)]
    totals = scores.confusion.sum(-1, keepdims=True)
    percent = 100 * scores.confusion / np.maximum(totals, 1)
    counts = [[name, *map(str, row)] for name, row in zip(cv.classes, scores.confusion, strict=True)]
    shares = [
        [name, *(f"{share:.0f}" if total else "-" for share in row)]
        for name, row, total in zip(cv.classes, percent, totals[:, 0], strict=True)
    ]
    seeds = len({t.trial.seed for t in cv.trials})
    counted = "Predictions" if seeds == 1 else f"Predictions, summed over {seeds} seeds"
    return (
        f"{counted}:",
        markdown.table(header, counts, left=(0,)),
        "Percent of the true class:",
        markdown.table(header, shares, left=(0,)),
    )


def _fold_table(cv: CrossValidation) -> str:
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
    return markdown.table(["fold", "part", "who", "clips", "minutes"], rows, left=(1, 2))
