"""Predictions held against the plan. What a report counts must be exactly what was planned, so each of these is refused:
a clip predicted twice (a filler, a rank's overlap), a clip missing or from elsewhere, a clip tested in two folds, dev and test
taken for each other, a class that nobody planned. Every message names the file and the culprit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER
from ser_hpc.errors import UserError, listed
from ser_hpc.files import read_json
from ser_hpc.results.predictions import Prediction, read
from ser_hpc.results.run_dir import RunDir, Trial, TrialDir

PLAN_FORMAT = 1
PARTS = ("dev", "test")
_AGAIN = "remove that trial's folder and run the launch command again"


def read_plan(run: RunDir) -> dict[str, Any]:
    """The plan, if it asks for every fold with every seed: else a mean over its trials would be one over some."""
    plan = run.read_plan()
    if plan.get("format") != PLAN_FORMAT:
        raise UserError(f"{run.plan} has format {plan.get('format')!r}; this version reads format {PLAN_FORMAT}")
    every = {Trial(seed, fold["fold"]) for seed in plan["seeds"] for fold in plan["folds"]}
    if not every or len(plan["trials"]) != len(every) or set(run.trials()) != every:
        raise UserError(f"{run.plan} is damaged: its trials are not each of its folds once with each of its seeds")
    return plan


def read_done(folder: TrialDir) -> dict[str, Any]:
    """The marker of a finished trial."""
    try:
        done = dict(read_json(folder.done))
        done["best_epoch"] = int(done["best_epoch"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.done} is damaged ({error!r}); {_AGAIN}") from error
    return done


def read_parts(folder: TrialDir, plan: dict[str, Any]) -> dict[str, tuple[Prediction, ...]]:
    """A finished trial's predictions of its "dev" and "test" parts, each clip of the plan exactly once."""
    if not folder.current.predictions.exists():
        raise UserError(f"{folder.path} is marked as done but has no {folder.current.predictions.name}; {_AGAIN}")
    predictions = read(folder.current.predictions)
    _refuse_strangers(folder, predictions, plan["classes"])
    fold = next(fold for fold in plan["folds"] if fold["fold"] == folder.trial.fold)
    parts = {part: tuple(p for p in predictions if p.part == part) for part in PARTS}
    for part, found in parts.items():
        if problems := _differences(found, fold[part]):
            what = f"{folder.current.predictions}: the {part} part is not the planned one"
            raise UserError(f"{what}; it holds {listed(problems)}; {_AGAIN}")
    return parts


def refuse_overlaps(tested: dict[Trial, tuple[Prediction, ...]]) -> None:
    """Within a seed no clip is tested in two folds; over seeds a fold tests the same clips of the same speakers and classes."""
    first: dict[tuple[int, str], Trial] = {}
    for trial, predictions in tested.items():
        for clip in map(clip_name, predictions):
            other = first.setdefault((trial.seed, clip), trial)
            if other != trial:
                raise UserError(f"{clip} is tested in {other} and again in {trial}: it would count twice; plan the folds anew")
    reference: dict[int, Trial] = {}
    for trial, predictions in tested.items():
        other = reference.setdefault(trial.fold, trial)
        here, there = ({(clip_name(p), p.speaker, p.truth) for p in clips} for clips in (predictions, tested[other]))
        if here != there:
            names = listed(sorted({clip for clip, _, _ in here ^ there}))
            raise UserError(
                f"{other} and {trial} tested different clips, speakers or classes: {names}; of the wrong one, {_AGAIN}"
            )


def clip_name(prediction: Prediction) -> str:
    """Unique over corpora."""
    return f"{prediction.corpus}-{prediction.utterance_id}"


def is_known(prediction: Prediction) -> bool:
    """Whether anyone knows who speaks."""
    return prediction.speaker.lower() != UNKNOWN_SPEAKER


def _refuse_strangers(folder: TrialDir, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Each clip once in dev and test together, and no class or part that nobody planned."""
    times = Counter(map(clip_name, predictions))
    if twice := [clip for clip, count in times.items() if count > 1]:
        raise UserError(f"{folder.current.predictions}: predicted more than once: {listed(twice)}; {_AGAIN}")
    for p in predictions:
        for what, given, allowed in (
            ("part", p.part, PARTS),
            ("true class", p.truth, classes),
            ("predicted class", p.predicted, classes),
        ):
            if given not in allowed:
                problem = f"{what} of {clip_name(p)} is {given!r}, not one of {listed(allowed, 30)}"
                raise UserError(f"{folder.current.predictions}: the {problem}; {_AGAIN}")


def _differences(found: Sequence[Prediction], part: dict[str, Any]) -> list[str]:
    """How predictions differ from the plan's part: clips, clips per class, speakers (a plan names the known ones)."""
    counts, planned = Counter(p.truth for p in found), set(part["speakers"])
    speakers = {_planned_name(p, planned) for p in found if is_known(p)}
    return [
        *([f"{len(found)} clips instead of {part['num']}"] if len(found) != part["num"] else []),
        *(
            f"{counts[name]} of class {name} instead of {part['classes'].get(name, 0)}"
            for name in sorted({*counts, *part["classes"]})
            if counts[name] != part["classes"].get(name, 0)
        ),
        *(f"speaker {name}, who does not belong to it" for name in sorted(speakers - planned)),
        *(f"nothing of speaker {name}" for name in sorted(planned - speakers)),
    ]


def _planned_name(prediction: Prediction, planned: set[str]) -> str:
    """A plan over several corpora says `corpus/speaker`, one over a single corpus `speaker`."""
    qualified = f"{prediction.corpus}/{prediction.speaker}"
    return qualified if qualified in planned else prediction.speaker
