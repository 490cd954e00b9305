"""Make the content of report.json: a cross-validation for programs.

It is kept stable: keys are added, never renamed or taken away. Scores of the run are null while a trial is missing; what the
finished trials scored stands apart, under `partial`, with the number of trials it is over.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from ser_hpc.results.class_scores import ClassScores
from ser_hpc.results.cross_validation import CrossValidation, Scores, Spread
from ser_hpc.results.details import Details
from ser_hpc.results.intervals import Interval
from ser_hpc.results.report_summary import SCORE_NAMES, report_notes
from ser_hpc.results.run_panel import PANEL_NUMBERS
from ser_hpc.results.shortcut_panel import Shortcut
from ser_hpc.results.task_scores import TaskScores
from ser_hpc.results.without_listening import WithoutListening

REPORT_FORMAT = 1


def to_json(cv: CrossValidation) -> dict[str, Any]:
    """Return the content of `report.json`: strict JSON, null where a number is undefined or not known yet."""
    total = _aggregate_json(cv, cv.scores)
    total["uar"] |= {"ci95": json_bounds(cv.interval), "ci95_reason": cv.interval.reason} | (
        {"ci95_unit": cv.interval.unit, "ci95_units": cv.interval.num_units} if cv.interval.bounds else {}
    )
    return {
        "format": REPORT_FORMAT,
        "name": cv.plan["name"],
        "demo": cv.plan["demo"],
        "protocol": cv.plan["protocol"],
        "corpora": cv.plan["corpora"],
        "label_set": cv.plan["label_set"],
        "num_trials": len(cv.trials) + len(cv.missing),
        "num_test": sum(fold["test"]["num_clips"] for fold in cv.plan["folds"]),
        **{key: total[key] for key in (*SCORE_NAMES, "over_trials")},
        "classes": cv.classes,
        "recall": total["recall"],
        "confusion": total["confusion"],
        "by_class": {of.name: _class_json(of) for of in cv.by_class} if cv.scores else {},
        "seeds": [{"seed": s.seed, "mean": json_number(s.mean), "pooled": json_number(s.pooled)} for s in cv.seeds],
        "folds": [
            {
                "seed": t.trial.seed,
                "fold": t.trial.fold,
                **{score: json_number(getattr(t, score)) for score in (*SCORE_NAMES, "dev_uar")},
                "num_test": t.num_test,
                "best_epoch": t.best_epoch,
                "absent_classes": list(t.absent_classes),
            }
            for t in cv.trials
        ],
        "missing": [{"seed": m.trial.seed, "fold": m.trial.fold, "reason": m.reason} for m in cv.missing],
        "partial": {"num_trials": len(cv.trials), **_aggregate_json(cv, cv.finished)} if cv.missing and cv.finished else None,
        "dropped": cv.plan["dropped"],
        "notes": report_notes(cv),
        "warnings": list(cv.warnings),
        **({"tasks": {task.name: _task_json(task) for task in cv.tasks}} if cv.tasks else {}),
        **({"without_listening": _beside_json(cv, cv.without_listening)} if cv.without_listening else {}),
        "about": cv.about,
        **(_details_json(cv.details) if cv.details else {}),
    }


def _aggregate_json(cv: CrossValidation, scores: Scores | None) -> dict[str, Any]:
    """Convert scores over several trials to JSON; the same keys with null in them where there are none."""

    def spread(of: Spread | None) -> dict[str, float | None]:
        return {key: json_number(getattr(of, key)) if of else None for key in ("mean", "std", "pooled")}

    spreads = {score: spread(getattr(scores, score) if scores else None) for score in SCORE_NAMES}
    recall = scores.recall if scores else np.full(len(cv.classes), np.nan)
    return {
        "uar": spreads.pop("uar"),
        **{score: of["pooled"] for score, of in spreads.items()},
        "over_trials": {score: {"mean": of["mean"], "std": of["std"]} for score, of in spreads.items()},
        "recall": {name: json_number(value) for name, value in zip(cv.classes, recall, strict=True)},
        "confusion": scores.confusion.tolist() if scores else None,
    }


def _class_json(of: ClassScores) -> dict[str, Any]:
    return {
        "recall": json_number(of.recall),
        "recall_ci95": json_bounds(of.recall_interval),
        "f1": json_number(of.f1),
        "f1_ci95": json_bounds(of.f1_interval),
        "num_test": of.num_clips,
        "num_speakers": of.num_speakers,
    }


def json_bounds(interval: Interval) -> list[float] | None:
    """Convert an interval; null where it has no bounds."""
    return list(interval.bounds) if interval.bounds else None


def _task_json(task: TaskScores) -> dict[str, Any]:
    """Convert the scores of a task beside the main one; over the finished trials, of which `partial` tells the number."""
    return {
        "kind": task.target.kind,
        "num_test": task.num_clips,
        "best": task.best,
        "scores": {
            name: {
                "mean": json_number(task.mean[name]),
                "std": json_number(task.std[name]),
                "pooled": json_number(task.pooled[name]),
            }
            for name in task.mean
        },
    }


def _beside_json(cv: CrossValidation, beside: WithoutListening) -> dict[str, Any]:
    """Convert what stands beside the scores: the shortcut panel, what is confounded, how often these clips were scored."""
    panel, of, ledger = beside.panel, beside.confounding, beside.ledger
    return {
        "meaning": beside.meaning(cv.scores.uar.pooled if cv.scores else None),
        "panel": panel and {row.name.replace(" ", "_"): _row_json(row) for row in panel.rows},
        "panel_reason": beside.reason,
        **({name: getattr(panel, name) for name in PANEL_NUMBERS} if panel else {}),
        "confounding": of
        and {
            "speaker_majority": of.speaker_share,
            "class_majority": of.class_share,
            "prior_gap": dict(zip(("class", "fold", "train", "test"), of.prior_gap, strict=True)),
        },
        "scored": ledger
        and {"number": ledger.number, "configurations": len(ledger.uars), "best": ledger.best, "median": ledger.median},
    }


def _row_json(row: Shortcut) -> dict[str, Any]:
    return {"uar": row.uar, "ci95": json_bounds(row.interval), "ci95_reason": row.interval.reason, "control": row.control}


def _details_json(details: Details) -> dict[str, Any]:
    """Convert what is behind the scores; over the finished trials, of which `partial` tells the number."""
    of = details.reliability
    return {
        "groups": [
            {
                "by": group.by,
                "group": group.name,
                "num_test": group.num_clips,
                "num_speakers": group.num_speakers,
                "uar": json_number(group.uar),
                "uar_ci95": json_bounds(group.interval),
                "wa": json_number(group.wa),
            }
            for group in details.groups
        ],
        "groups_unseen": details.unseen,
        "calibration": {
            "ece": of.error,
            "bins": [
                {"clips": int(clips), "confidence": json_number(confidence), "accuracy": json_number(accuracy)}
                for clips, confidence, accuracy in zip(of.clips, of.confidence, of.accuracy, strict=True)
            ],
        },
        "confused": [asdict(pair) for pair in details.confused],
        "surest_mistakes": [asdict(mistake) for mistake in details.mistakes],
    }


def json_number(value: float) -> float | None:
    """Convert a number; null where it is undefined."""
    return None if math.isnan(value) else float(value)
