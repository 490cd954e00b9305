"""Write the sentences that the formats of a report share: its headline, its notes, what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ser_hpc.core.errors import counted
from ser_hpc.results import markdown
from ser_hpc.results.cross_validation import CrossValidation
from ser_hpc.results.details import Details
from ser_hpc.results.intervals import Interval, measured_coverage
from ser_hpc.results.task_scores import TaskScores
from ser_hpc.tasks.reliability import BINS

DEMO_NOTE = "Numbers of a demo: synthetic speech. They show that the chain works and say nothing about emotion in real speech."
SCORE_NAMES = {"uar": "UAR", "wa": "WA", "macro_f1": "macro-F1", "kappa": "kappa"}

_READING = (
    "UAR: mean of the recalls of the classes that occur in the test part; WA: accuracy; macro-F1 over the same classes as UAR; "
    "kappa: Cohen's.",
    "Mean and standard deviation are over trials (every fold with every seed). Pooled: the test clips of all folds of a seed "
    "as one set, averaged over seeds.",
    "Each trial's epoch, counted from 1, is the one with the best dev {chosen_by}; its test part has no say in it.",
)
HOW_PANEL = (
    "Logistic regression on the folds of this run, trained on the training parts; pooled as above. Control: labels exchanged "
    "within each speaker. The long-term spectrum is of the microphone and the room, but of the voice too."
)


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
    interval = interval_words(cv.interval)
    return (
        f"UAR **{markdown.format_score(uar.mean)}**{spread} over {over}; pooled **{markdown.format_score(uar.pooled)}**, "
        f"{interval}; "
        f"chance is {1 / len(cv.classes):.3f}."
    )


def interval_words(of: Interval) -> str:
    """Say an interval and over what it is, or why there is none."""
    if of.bounds is None:
        return f"no interval ({of.reason})"
    return f"95% interval {of.bounds[0]:.3f} to {of.bounds[1]:.3f} over {_units(of)}"


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


def protocol_words(plan: Mapping[str, Any]) -> str:
    """Say how the clips were divided, and what each part is for."""
    folds = plan["folds"]
    shared = any(
        {*fold[one]["speakers"]} & {*fold[other]["speakers"]}
        for fold in folds
        for one, other in (("train", "test"), ("train", "dev"), ("dev", "test"))
    )
    people = "some speakers are in more than one part of a fold" if shared else "no known speaker is in two parts of a fold"
    clips = {part: [fold[part]["num_clips"] for fold in folds] for part in ("train", "dev", "test")}
    sizes = ", ".join(f"{min(n)} to {max(n)} {part}" if min(n) < max(n) else f"{n[0]} {part}" for part, n in clips.items())
    return (
        f"Protocol: {markdown.one_line(plan['protocol'])}. {counted(len(folds), 'fold')}, of {sizes} clips; {people}. In each, "
        "a model learns from train, dev chooses, and test alone is scored."
    )


def calibration_sentence(details: Details) -> str:
    """Say how far the confidence is to be believed."""
    of = details.reliability
    sure = float(np.nansum(of.confidence * of.clips) / of.clips.sum())
    right = float(np.nansum(of.accuracy * of.clips) / of.clips.sum())
    told = (
        f"Mean confidence {sure:.0%}, {right:.0%} right; expected calibration error {markdown.format_score(of.error)} "
        f"(over {BINS} bins), as the trials predicted."
    )
    return f"{told} Predicting with the run divides by a temperature that was fitted to the dev parts."


def unseen_groups(cv: CrossValidation) -> list[str]:
    """Say why groups by gender and length are not there, where they are not; else nothing."""
    unseen = cv.details.unseen if cv.details else None
    return [f"Gender, language, intensity and length of the clips are not known: {unseen}."] if unseen else []


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


def reading_notes(cv: CrossValidation) -> list[str]:
    """List how the scores are to be read; the last line names the dev score that chose the epochs."""
    return [*interval_notes(cv), *(line.format(chosen_by=cv.plan.get("select_by", "UAR")) for line in _READING)]


def absent_classes(cv: CrossValidation) -> list[str]:
    """Say which classes have no test clip in which fold; nothing where each has."""
    absent = {t.trial.fold: t.absent_classes for t in cv.trials if t.absent_classes}
    if not absent:
        return []
    listed_folds = "; ".join(f"{', '.join(names)} in fold {fold}" for fold, names in sorted(absent.items()))
    return [f"Without a test clip, and left out of UAR and macro-F1 there: {listed_folds}."]


def counted_predictions(cv: CrossValidation) -> str:
    """Say over what a confusion matrix is summed."""
    seeds = len({t.trial.seed for t in cv.trials})
    return "Predictions" if seeds == 1 else f"Predictions, summed over {seeds} seeds"
