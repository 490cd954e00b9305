"""Write the sentences that the formats of a report share: its headline, its notes, what is missing."""

from __future__ import annotations

import math

from ser_hpc.core.errors import counted
from ser_hpc.results import markdown
from ser_hpc.results.cross_validation import CrossValidation
from ser_hpc.results.intervals import Interval, measured_coverage
from ser_hpc.results.task_scores import TaskScores

DEMO_NOTE = "Numbers of a demo: synthetic speech. They show that the chain works and say nothing about emotion in real speech."
SCORE_NAMES = {"uar": "UAR", "wa": "WA", "macro_f1": "macro-F1", "kappa": "kappa"}


def report_headline(cv: CrossValidation) -> str:
    """Return the result in one sentence, with its interval; of an unfinished run only over how many trials it is."""
    if not cv.finished:
        return "No trial is finished: there are no scores yet."
    uar = cv.finished.uar
    spread = f" ± {markdown.format_score(uar.std)} (standard deviation)" if not math.isnan(uar.std) else ""
    if cv.missing:
        return (
            f"The {count_trials(len(cv.trials), 'finished')} alone: UAR {markdown.format_score(uar.mean)}{spread}. "
            "This is not the score of the run, and is not comparable with one."
        )
    seeds, folds = len(cv.plan["seeds"]), len(cv.plan["folds"])
    over = f"{counted(folds, 'fold')} and {counted(seeds, 'seed')}"
    low_high = cv.interval.bounds
    interval = (
        f"95% interval {low_high[0]:.3f} to {low_high[1]:.3f} over {_units(cv.interval)}"
        if low_high
        else f"no interval ({cv.interval.reason})"
    )
    return (
        f"UAR **{markdown.format_score(uar.mean)}**{spread} over {over}; pooled **{markdown.format_score(uar.pooled)}**, "
        f"{interval}; "
        f"chance is {1 / len(cv.classes):.3f}."
    )


def _units(interval: Interval) -> str:
    speakers = counted(interval.num_speakers, "speaker")
    return speakers if interval.unit == "speaker" else f"{counted(interval.num_units, interval.unit)} of {speakers}"


def interval_notes(cv: CrossValidation) -> list[str]:
    """Say what the interval rests on, and how often such an interval holds what it should."""
    if not cv.interval.bounds:
        return []
    size, held = measured_coverage(cv.interval.num_speakers)
    method = (
        f"The interval is of the pooled UAR: jackknife over {cv.interval.unit}s, t quantile, logit scale. It tells how the "
        f"score would vary with other test speakers, not with other training data. Of runs simulated with {size} speakers, "
        f"{held:.0%} of such intervals held the true UAR."
    )
    if cv.interval.unit == "fold":
        method += " Folds are the unit because they differ by more than their speakers explain: each fold has its own model."
    fewest = min((c for c in cv.by_class if c.num_speakers), key=lambda c: (c.num_speakers, c.num_clips), default=None)
    if fewest is None:
        return [method]
    clips = min(cv.by_class, key=lambda c: c.num_clips)
    return [
        method,
        f"Behind the classes: the fewest speakers, {fewest.num_speakers}, have {fewest.name}; the fewest clips, "
        f"{clips.num_clips}, are of {clips.name}. Brackets behind recall and F1 are 95 % intervals "
        "over the speakers of the class.",
    ]


def task_sentence(task: TaskScores) -> str:
    """Say what a task beside the main one scored."""
    names = {"uar": "UAR", "ccc": "mean concordance"}
    scored = f"{names.get(task.best, task.best)} {markdown.format_score(task.mean[task.best])}"
    pooled = f"pooled {markdown.format_score(task.pooled[task.best])}"
    return f"{task.name}: {scored}, {pooled}, over {counted(task.num_clips, 'test clip')}; chance is {task.chance:.3f}."


def report_notes(cv: CrossValidation) -> list[str]:
    """List what a reader must know before believing the numbers, with the plan's notes on the data and the protocol."""
    notes = [DEMO_NOTE] if cv.plan["demo"] else []
    if len(cv.plan["seeds"]) == 1:
        notes.append("One seed: how far the numbers vary from seed to seed is not known.")
    return notes + list(cv.notes)


def incomplete_sentence(cv: CrossValidation) -> str:
    """Say how many trials are missing."""
    total = len(cv.trials) + len(cv.missing)
    return f"Incomplete: {len(cv.missing)} of {count_trials(total)} {'is' if len(cv.missing) == 1 else 'are'} missing."


def count_trials(number: int, kind: str = "") -> str:
    """Format `1 trial`, `3 finished trials`."""
    return counted(number, f"{kind} trial".strip())
