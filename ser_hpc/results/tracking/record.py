"""Make records of a run and its trials for a tracker, from the run directory and its report; paths and names of machines stay.

The names of curves are those that trackers get while a trial trains (`engine.progress`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import UNREADABLE, read_json
from ser_hpc.results.cross_validation import CrossValidation, TrialScores
from ser_hpc.results.report_json import to_json
from ser_hpc.results.report_markdown import to_markdown
from ser_hpc.results.report_summary import SCORE_NAMES, incomplete_sentence, report_headline
from ser_hpc.results.tracking.shown_settings import shown_settings, without_places
from ser_hpc.run.run_dir import AttemptDir, RunDir, TrialDir

FAILED = ("failed", "hung", "lost")  # of a trial's states, besides `finished`, `stopped ...`, `not finished`


@dataclass(frozen=True, slots=True)
class Point:
    """What is known after `step` optimizer steps: finite numbers by name, as train/loss, dev/uar."""

    step: int
    numbers: dict[str, float]


@dataclass(frozen=True, slots=True)
class Record:
    """A run (`parent` is None), or one of its trials.

    `key`: the same whenever the same run, or trial, is handed on; `group`: the run's directory's name; `state`: in words, and
    `finished`; `summary`: its result in a sentence or two of Markdown; `points`: the curves, by step; `step`: what the `scores`
    are of: a trial's optimizer steps, a run's finished trials; `files`: text by file name; `started`, `ended`: epoch seconds,
    where known.
    """

    key: str
    name: str
    group: str
    parent: str | None
    state: str
    finished: bool
    summary: str
    step: int
    settings: dict[str, str]
    scores: dict[str, float]
    points: tuple[Point, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None


def make_records(run: RunDir, report: CrossValidation, *, with_report: bool) -> Iterator[Record]:
    """Yield the run's record, then one of each trial that has begun, in the plan's order. Raises UserError if its settings
    cannot be read."""
    settings, group = shown_settings(run.settings), run.path.resolve().name
    key = str(report.plan.get("run", group))[:32]
    begun = [folder for folder in map(run.trial, run.trials()) if folder.attempts]
    spans = [_span(folder) for folder in begun]
    yield Record(
        key=key,
        name=group,
        group=group,
        parent=None,
        state=f"{len(report.trials)} of {len(report.trials) + len(report.missing)} trials finished",
        finished=not report.missing,
        summary=" ".join([*([incomplete_sentence(report)] if report.missing else []), report_headline(report)]),
        step=len(report.trials),
        settings=settings,
        scores=_finite(_run_scores(report)),
        files=_report_files(report) if with_report else {},
        started=min((start for start, _ in spans if start), default=None),
        ended=None if report.missing else max((end for _, end in spans if end), default=None),
    )
    scored = {each.trial: each for each in report.trials}
    reasons = {each.trial: each.reason.partition(":")[0] for each in report.missing}
    for folder, (started, ended) in zip(begun, spans, strict=True):
        trial, points = folder.trial, read_points(folder.current)
        of = scored.get(trial)
        yield Record(
            key=f"{key}-s{trial.seed}-f{trial.fold}",
            name=f"{group} {trial}",
            group=group,
            parent=key,
            state="finished" if of else reasons[trial],
            finished=of is not None,
            summary=f"Test UAR {of.uar:.3f}, at the epoch with the best dev score."
            if of
            else reasons[trial].capitalize() + ".",
            step=points[-1].step if points else 0,
            settings=settings | {"seed": str(trial.seed), "fold": str(trial.fold)},
            scores=_finite(_trial_scores(folder, of)),
            points=points,
            started=started,
            ended=ended,
        )


def read_points(attempt: AttemptDir) -> tuple[Point, ...]:
    """Read an attempt's curves, up to the last epoch that was scored: what follows may be made again by a resume."""
    numbers: dict[int, dict[str, Any]] = {}
    last_step: dict[int, int] = {}
    for line in _lines(attempt.steps):
        last_step[line["epoch"]] = step = line["step"] + 1
        numbers[step] = {f"train/{name}": line.get(name) for name in ("loss", "lr", "grad_norm")}
    until = 0
    for line in _lines(attempt.epochs):
        # Evaluations every so many steps say at which; what has no steps, as a probe, counts by epochs.
        until = line["step"] if "step" in line else last_step.get(line["epoch"], line["epoch"] + 1)
        others = {f"dev/{task}/{name}": score for task, of in line.get("dev", {}).items() for name, score in of.items()}
        known = {"train/epoch_loss": line.get("train_loss"), "dev/uar": line.get("dev_uar"), "dev/loss": line.get("dev_loss")}
        numbers.setdefault(until, {}).update(known | others)
    return tuple(Point(step, _finite(numbers[step])) for step in sorted(numbers) if step <= until)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a file that may still be written, or that is not there."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                return  # cut off by a kill, or not written to its end yet


def _finite(numbers: dict[str, Any]) -> dict[str, float]:
    return {name: float(each) for name, each in numbers.items() if isinstance(each, int | float) and math.isfinite(each)}


def _span(folder: TrialDir) -> tuple[float | None, float | None]:
    """Return when a trial began, and when it was done, in epoch seconds; None where it is not known, or not done."""
    started = ended = None
    with suppress(*UNREADABLE):
        started = float(read_json(folder.attempts[0].attempt)["started"])
    if folder.is_done:
        with suppress(*UNREADABLE):
            ended = float(read_json(folder.current.end)["ended"])
    return started, ended


def _trial_scores(folder: TrialDir, scores: TrialScores | None) -> dict[str, Any]:
    """Return a finished trial's scores, what it took, and its throughput in seconds of audio a second; of others none."""
    if scores is None:
        return {}
    found: dict[str, Any] = {f"test/{name}": getattr(scores, name) for name in SCORE_NAMES}
    found |= {"chosen/dev_uar": scores.dev_uar, "chosen/epoch": scores.best_epoch + 1, "test/clips": scores.num_test}
    with suppress(*UNREADABLE):
        found["speed/seconds"] = read_json(folder.done).get("seconds")
    with suppress(*UNREADABLE):
        progress = read_json(folder.current.progress)
        found |= {f"speed/{name}": progress.get(name) for name in ("model_audio_s_per_s", "data_audio_s_per_s")}
    return found


def _run_scores(report: CrossValidation) -> dict[str, Any]:
    """Return the report's scores, each with its interval where it has one; of an unfinished run the number of trials alone."""
    found: dict[str, Any] = {"trials/finished": len(report.trials), "trials/planned": len(report.trials) + len(report.missing)}
    if report.scores is None:
        return found
    for name in SCORE_NAMES:
        of = getattr(report.scores, name)
        found |= {f"test/{name}_{part}": getattr(of, part) for part in ("pooled", "mean", "std")}
    content = to_json(report)
    found |= _bounds("test/uar", content["uar"]["ci95"])
    for name, of_class in content["by_class"].items():
        for score in ("recall", "f1"):
            found |= {f"test/{score}/{name}": of_class[score]} | _bounds(f"test/{score}/{name}", of_class[f"{score}_ci95"])
    for task, of_task in content.get("tasks", {}).items():
        found |= {f"test/{task}/{name}": score["pooled"] for name, score in of_task["scores"].items()}
    for name, row in (content.get("without_listening", {}).get("panel") or {}).items():
        found[f"without_listening/{name}"] = row["uar"]
    return found


def _bounds(name: str, bounds: list[float] | None) -> dict[str, float]:
    return dict(zip((f"{name}_ci95_low", f"{name}_ci95_high"), bounds or (), strict=False))


def _report_files(report: CrossValidation) -> dict[str, str]:
    content = json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return {"report.md": without_places(to_markdown(report)), "report.json": without_places(content)}
