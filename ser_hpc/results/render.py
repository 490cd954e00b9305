"""One cross-validation as JSON for programs, as Markdown for people, and as a short table for the terminal.

`report.json` is kept stable: keys are added, never renamed or taken away. Scores of the run are null while a trial is missing;
what the finished trials scored stands apart, under `partial`, with the number of trials it is over.
"""

from __future__ import annotations

import math
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from ser_hpc.errors import counted
from ser_hpc.results import text
from ser_hpc.results.cross_validation import CrossValidation, Scores, Spread, TrialScores

if TYPE_CHECKING:
    from rich.console import RenderableType

REPORT_FORMAT = 1
DEMO = "Numbers of a demo: synthetic speech. They show that the chain works and say nothing about emotion in real speech."
_SCORES = {"uar": "UAR", "wa": "WA", "macro_f1": "macro-F1", "kappa": "kappa"}


def to_json(cv: CrossValidation) -> dict[str, Any]:
    """The content of `report.json`: strict JSON, null where a number is undefined or not known yet."""
    total = _together(cv, cv.scores)
    total["uar"] |= {"ci95": list(cv.interval.bounds) if cv.interval.bounds else None, "ci95_reason": cv.interval.reason}
    return {
        "format": REPORT_FORMAT,
        "name": cv.plan["name"],
        "demo": cv.plan["demo"],
        "protocol": cv.plan["protocol"],
        "corpora": cv.plan["corpora"],
        "label_set": cv.plan["label_set"],
        "num_trials": len(cv.trials) + len(cv.missing),
        "num_test": sum(fold["test"]["num"] for fold in cv.plan["folds"]),
        **{key: total[key] for key in (*_SCORES, "over_trials")},
        "classes": cv.classes,
        "recall": total["recall"],
        "confusion": total["confusion"],
        "seeds": [{"seed": s.seed, "mean": _number(s.mean), "pooled": _number(s.pooled)} for s in cv.seeds],
        "folds": [
            {
                "seed": t.trial.seed,
                "fold": t.trial.fold,
                **{score: _number(getattr(t, score)) for score in (*_SCORES, "dev_uar")},
                "num_test": t.num_test,
                "best_epoch": t.best_epoch,
                "absent_classes": list(t.absent_classes),
            }
            for t in cv.trials
        ],
        "missing": [{"seed": m.trial.seed, "fold": m.trial.fold, "reason": m.reason} for m in cv.missing],
        "partial": {"num_trials": len(cv.trials), **_together(cv, cv.finished)} if cv.missing and cv.finished else None,
        "dropped": cv.plan["dropped"],
        "notes": notes(cv),
        "warnings": list(cv.warnings),
        "about": cv.about,
    }


def to_markdown(cv: CrossValidation) -> str:
    """The content of `report.md`; its tables are aligned for those who read it as plain text."""
    paragraphs = [f"# {cv.plan['name']}"]
    if cv.warnings:
        paragraphs += [text.bullets(f"**Warning: {warning}**" for warning in cv.warnings)]
    if cv.missing:
        paragraphs += [f"**{_incomplete(cv)}**", text.bullets(f"{m.trial}: {m.reason}" for m in cv.missing)]
    paragraphs += [headline(cv)]
    if cv.about:
        paragraphs += ["## What was trained", text.bullets(f"{topic}: {words}" for topic, words in cv.about.items())]
    if cv.finished:
        over = f" (the {len(cv.trials)} finished trials only)" if cv.missing else ""
        paragraphs += ["## Trials", _trial_table(cv), *_absent_classes(cv)]
        if len(cv.seeds) > 1:
            rows = [[str(s.seed), text.score(s.mean), text.score(s.pooled)] for s in cv.seeds]
            paragraphs += ["UAR of each seed, over all its folds:", text.table(["seed", "mean", "pooled"], rows)]
        paragraphs += [f"## Classes{over}", _class_table(cv, cv.finished)]
        paragraphs += [f"## Confusion{over}", *_confusion_tables(cv, cv.finished)]
    paragraphs += ["## Folds", f"Protocol: {text.one_line(cv.plan['protocol'])}", _fold_table(cv)]
    paragraphs += ["## Notes", text.bullets(notes(cv)), text.bullets(_READING)]
    return "\n\n".join(paragraphs) + "\n"


def to_terminal(cv: CrossValidation) -> RenderableType:
    """A row per fold (averaged over its seeds, once all of them are there), the run's scores below; for 80 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("fold", justify="right", no_wrap=True)
    table.add_column("tested on", max_width=20)  # alone gets narrower where the screen is; its words are cut, not broken
    for name in ("clips", *_SCORES.values(), "dev UAR"):
        table.add_column(name, justify="right", no_wrap=True)
    for fold in cv.plan["folds"]:
        trials = [t for t in cv.trials if t.trial.fold == fold["fold"]]
        scores = [text.score(float(np.mean([getattr(t, score) for t in trials]))) for score in (*_SCORES, "dev_uar") if trials]
        if any(m.trial.fold == fold["fold"] for m in cv.missing):
            scores = ["missing", "", "", "", ""]
        cells = (str(fold["fold"]), fold["test"]["words"], str(fold["test"]["num"]), *scores)
        table.add_row(
            *(Text(cell, style="red" if cell == "missing" else "", no_wrap=True, overflow="ellipsis") for cell in cells)
        )
    if cv.scores:
        table.add_section()
        for field in ("mean", "std", "pooled"):
            values = [text.score(getattr(getattr(cv.scores, score), field)) for score in _SCORES]
            label = f"mean of {_trials(cv.scores.num_trials)}" if field == "mean" else {"std": "± std"}.get(field, field)
            table.add_row("", Text(label), "", *values, style="" if field == "mean" else "dim")
    seeds = len(cv.plan["seeds"])
    title = Text.assemble((cv.plan["name"], "bold"), (f"  each fold: mean of {seeds} seeds" if seeds > 1 else "", "dim"))
    lines: list[RenderableType] = [*(Text(f"Warning: {each}", style="bold red") for each in cv.warnings), title, table]
    if cv.missing:
        lines += [Text(_incomplete(cv), style="bold red")]
        lines += [Text(f"  {m.trial}: {shorten(m.reason, 240)}", style="red") for m in cv.missing]
    lines += [Text(headline(cv).replace("**", ""))]
    return Group(*lines, *([Text(DEMO, style="dim")] if cv.plan["demo"] else []))


def headline(cv: CrossValidation) -> str:
    """The result in one sentence, the interval with it; of an unfinished run only what it is over."""
    if not cv.finished:
        return "No trial is finished: there are no scores yet."
    uar = cv.finished.uar
    spread = f" ± {text.score(uar.std)} (standard deviation)" if not math.isnan(uar.std) else ""
    if cv.missing:
        return (
            f"The {_trials(len(cv.trials), 'finished')} alone: UAR {text.score(uar.mean)}{spread}. "
            "This is not the score of the run, and is not comparable with one."
        )
    seeds, folds = len(cv.plan["seeds"]), len(cv.plan["folds"])
    over = f"{counted(folds, 'fold')} and {counted(seeds, 'seed')}"
    low_high = cv.interval.bounds
    interval = (
        f"95% interval {low_high[0]:.3f} to {low_high[1]:.3f} by resampling {cv.interval.num_speakers} speakers"
        if low_high
        else f"no interval ({cv.interval.reason})"
    )
    return (
        f"UAR **{text.score(uar.mean)}**{spread} over {over}; pooled **{text.score(uar.pooled)}**, {interval}; "
        f"chance is {1 / len(cv.classes):.3f}."
    )


def notes(cv: CrossValidation) -> list[str]:
    """What a reader must know before believing the numbers; what the data and the protocol leave open, the plan has noted."""
    found = [DEMO] if cv.plan["demo"] else []
    if len(cv.plan["seeds"]) == 1:
        found.append("One seed: how far the numbers vary from seed to seed is not known.")
    return found + list(cv.notes)


_READING = (
    "UAR: mean of the recalls of the classes that occur in the test part; WA: accuracy; macro-F1 over the same classes as UAR; "
    "kappa: Cohen's.",
    "Mean and standard deviation are over trials (every fold with every seed). Pooled: the test clips of all folds of a seed "
    "as one set, averaged over seeds.",
    "The interval is of the pooled UAR: it tells how the score would vary with other test speakers (2,000 resamples of whole "
    "speakers), not with other training data.",
    "Each trial's epoch, counted from 1, is the one with the best dev UAR; its test part has no say in it.",
)


def _trial_table(cv: CrossValidation) -> str:
    def row(t: TrialScores) -> list[str]:
        scores = [text.score(getattr(t, score)) for score in (*_SCORES, "dev_uar")]
        return [str(t.trial.seed), str(t.trial.fold), *scores, str(t.best_epoch + 1), str(t.num_test)]

    rows = {t.trial: row(t) for t in cv.trials}
    rows |= {m.trial: [str(m.trial.seed), str(m.trial.fold), "missing", *[""] * 6] for m in cv.missing}
    ordered = [rows[trial] for trial in sorted(rows)]
    if cv.scores:
        for name, field in (("mean", "mean"), ("± std", "std"), ("pooled", "pooled")):
            ordered.append(
                [name, "", *(text.score(getattr(getattr(cv.scores, score), field)) for score in _SCORES), "", "", ""]
            )
    return text.table(["seed", "fold", *_SCORES.values(), "dev UAR", "epoch", "clips"], ordered)


def _absent_classes(cv: CrossValidation) -> list[str]:
    absent = {t.trial.fold: t.absent_classes for t in cv.trials if t.absent_classes}
    if not absent:
        return []
    where = "; ".join(f"{', '.join(names)} in fold {fold}" for fold, names in sorted(absent.items()))
    return [f"Without a test clip, and left out of UAR and macro-F1 there: {where}."]


def _class_table(cv: CrossValidation, scores: Scores) -> str:
    """Recall of each class and what it is mistaken for most often. Clips count once a seed."""
    rows = []
    for i, name in enumerate(cv.classes):
        wrong = scores.confusion[i].copy()
        wrong[i] = 0
        total, most = int(scores.confusion[i].sum()), int(wrong.argmax())
        taken = f"{cv.classes[most]} ({wrong[most] / total:.0%})" if wrong[most] else ""
        rows.append([name, text.score(scores.recall[i]), str(total), taken])
    seeds = len({t.trial.seed for t in cv.trials})
    clips = "clips" if seeds == 1 else f"clips, {seeds} seeds"
    return text.table(["class", "recall", clips, "most often taken for"], rows, left=(0, 3))


def _confusion_tables(cv: CrossValidation, scores: Scores) -> tuple[str, str, str, str]:
    header = ["true \\ predicted", *text.shortened(cv.classes)]
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
        text.table(header, counts, left=(0,)),
        "Percent of the true class:",
        text.table(header, shares, left=(0,)),
    )


def _fold_table(cv: CrossValidation) -> str:
    rows = []
    for fold in cv.plan["folds"]:
        for part in ("test", "dev", "train"):
            p = fold[part]
            rows.append(
                [str(fold["fold"]) if part == "test" else "", part, p["words"], str(p["num"]), f"{p['seconds'] / 60:.1f}"]
            )
    return text.table(["fold", "part", "who", "clips", "minutes"], rows, left=(1, 2))


def _together(cv: CrossValidation, scores: Scores | None) -> dict[str, Any]:
    """Scores over several trials as JSON; the same keys with null in them where there are none."""

    def spread(of: Spread | None) -> dict[str, float | None]:
        return {key: _number(getattr(of, key)) if of else None for key in ("mean", "std", "pooled")}

    spreads = {score: spread(getattr(scores, score) if scores else None) for score in _SCORES}
    recall = scores.recall if scores else np.full(len(cv.classes), np.nan)
    return {
        "uar": spreads.pop("uar"),
        **{score: of["pooled"] for score, of in spreads.items()},
        "over_trials": {score: {"mean": of["mean"], "std": of["std"]} for score, of in spreads.items()},
        "recall": {name: _number(value) for name, value in zip(cv.classes, recall, strict=True)},
        "confusion": scores.confusion.tolist() if scores else None,
    }


def _incomplete(cv: CrossValidation) -> str:
    total = len(cv.trials) + len(cv.missing)
    return f"Incomplete: {len(cv.missing)} of {_trials(total)} {'is' if len(cv.missing) == 1 else 'are'} missing."


def _trials(number: int, kind: str = "") -> str:
    return counted(number, f"{kind} trial".strip())


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
