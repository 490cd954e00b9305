"""Check a run against its plan. What a report counts must be exactly what was planned, so each of these is refused:

    the run             settings, labels or plan changed after they were written; a fold or seed that is not there any more
    a trial's marker    changed, or of another run, seed or fold: copied in from elsewhere
    its predictions     changed; a clip twice (a filler, a rank's overlap), missing or from elsewhere, tested in two folds;
                        another speaker or true class than planned; a class that nobody planned, or not the most probable one

Every message names the file and the culprit. None of it stops a forger who computes the checksums anew. A run that an earlier
version planned (format 1) has no checksums: it is reported on, its report says so, and its clips are counted and compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import read_json, unseal
from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.names import is_unknown
from ser_hpc.run.predictions import Prediction, clip_hashes, clips_digest, read_predictions
from ser_hpc.run.run_dir import Trial, TrialDir

LEGACY_NOTE = (
    "This run was planned by an earlier version of this package: nothing binds its predictions to its plan, so that clips, "
    "truths or speakers exchanged, and folds copied from other runs, could not be found; only their numbers were compared."
)
PARTS = ("dev", "test")
_AGAIN = "remove that trial's folder and run the launch command again"
_ROUNDING = 1e-3  # of a sum of probabilities of six digits each


def read_done(folder: TrialDir, plan: dict[str, Any]) -> dict[str, Any]:
    """Read a finished trial's marker. Raises UserError if it was changed, or is of another run, seed or fold."""
    try:
        done = dict(read_json(folder.done))
        if plan["format"] > 1:
            done = unseal(done)
            of = (done["run"], done["seed"], done["fold"])
            if of != (plan["run"], folder.trial.seed, folder.trial.fold):
                whose = f"seed {of[1]} fold {of[2]}" + ("" if of[0] == plan["run"] else f" of another run ({of[0][:8]})")
                raise UserError(f"{folder.done} is the marker of {whose}: the folder was copied or renamed; {_AGAIN}")
        done |= {name: int(done[name]) for name in ("attempt", "best_epoch")}
        for name in ("best_dev_uar", "seconds"):
            done[name] = None if done.get(name) is None else float(done[name])
    except (OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder.done} is damaged ({error!r}); {_AGAIN}") from error
    return done


def read_trial_predictions(folder: TrialDir, plan: dict[str, Any], done: dict[str, Any]) -> dict[str, tuple[Prediction, ...]]:
    """Read a finished trial's predictions of its "dev" and "test" parts, each clip of the plan exactly once.

    `done`: the trial's marker, which names the attempt and the file's SHA-256. Raises UserError.
    """
    path = folder.attempt(done["attempt"]).predictions
    if not path.exists():
        raise UserError(f"{folder.path} is marked as done but has no {path.name}; {_AGAIN}")
    predictions = read_predictions(path, done.get("predictions_sha256"))
    _refuse_strangers(path, predictions, plan["classes"])
    fold = next(fold for fold in plan["folds"] if fold["fold"] == folder.trial.fold)
    parts = {part: tuple(p for p in predictions if p.part == part) for part in PARTS}
    for part, found in parts.items():
        if problems := _differences(found, fold[part], plan.get("speaker_aliases", {})):
            what = f"{path}: the {part} part is not the planned one"
            raise UserError(f"{what}; it holds {listed(problems)}; {_AGAIN}")
    return parts


def refuse_overlaps(tested: dict[Trial, tuple[Prediction, ...]]) -> None:
    """Raise UserError where a seed tests a clip in two folds, or two seeds test other clips, speakers or classes in a fold."""
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
    """Return `corpus/utterance_id`, unique over corpora."""
    return f"{prediction.corpus}-{prediction.utterance_id}"


def is_known(prediction: Prediction) -> bool:
    """Tell whether the speaker is known."""
    return not is_unknown(prediction.speaker)


def _refuse_strangers(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Raise UserError for a clip twice in dev and test together, and for a class or part that nobody planned."""
    times = Counter(map(clip_name, predictions))
    if twice := [clip for clip, count in times.items() if count > 1]:
        raise UserError(f"{path}: predicted more than once: {listed(twice)}; {_AGAIN}")
    named = set(classes)
    for p in predictions:
        if p.part in PARTS and p.truth in named and p.predicted in named and _is_probable(p, named):
            continue
        for field, value, allowed in (
            ("part", p.part, PARTS),
            ("true class", p.truth, classes),
            ("predicted class", p.predicted, classes),
        ):
            if value not in allowed:
                problem = f"{field} of {clip_name(p)} is {value!r}, not one of {listed(allowed, 30)}"
                raise UserError(f"{path}: the {problem}; {_AGAIN}")
        if problem := _improbable(p, classes):
            raise UserError(f"{path}: {clip_name(p)}: {problem}; {_AGAIN}")


def _is_probable(prediction: Prediction, classes: set[str]) -> bool:
    """Tell whether nothing is wrong with the probabilities, in a fraction of the time in which `_improbable` says what is."""
    odds = prediction.probabilities.values()
    if prediction.probabilities.keys() != classes or set(map(type, odds)) != {float}:
        return False
    high = max(odds)
    return min(odds) >= 0 and prediction.probabilities[prediction.predicted] == high <= 1 and abs(sum(odds) - 1) <= _ROUNDING


def _improbable(prediction: Prediction, classes: Sequence[str]) -> str:
    """Say what is wrong with the probabilities; "" where each class has one and the predicted class's is highest."""
    given = prediction.probabilities
    if set(given) != set(classes):
        return f"its probabilities are of {listed(sorted(given)) or 'no class'}, not of {listed(classes, 30)}"
    if not all(isinstance(p, int | float) and 0 <= p <= 1 for p in given.values()) or abs(sum(given.values()) - 1) > _ROUNDING:
        return f"its probabilities are none: {listed([f'{name} {p}' for name, p in given.items()])}"
    if given[prediction.predicted] < max(given.values()):
        return f"predicted is {prediction.predicted}, but {max(given, key=given.__getitem__)} is more probable"
    return ""


def _differences(found: Sequence[Prediction], part: dict[str, Any], same: Mapping[str, str | None]) -> list[str]:
    """List how predictions differ from the plan's part: clips, clips per class, speakers (a plan names the known ones)."""
    counts, planned = Counter(p.truth for p in found), set(part["speakers"])
    speakers = {_planned_name(p, planned, same) for p in found if is_known(p)}
    problems = [
        *([f"{counted(len(found), 'clip')} instead of {part['num_clips']}"] if len(found) != part["num_clips"] else []),
        *(
            f"{counts[name]} of class {name} instead of {part['classes'].get(name, 0)}"
            for name in sorted({*counts, *part["classes"]})
            if counts[name] != part["classes"].get(name, 0)
        ),
        *(f"speaker {name}, who does not belong to it" for name in sorted(speakers - planned)),
        *(f"nothing of speaker {name}" for name in sorted(planned - speakers)),
    ]
    if not problems and "digest" in part and _digest(found) != part["digest"]:
        return ["as many clips of each class as planned, but not the same ones, or with other speakers or true classes"]
    return problems


def _digest(found: Sequence[Prediction]) -> str:
    columns = ([getattr(p, name) for p in found] for name in ("corpus", "utterance_id", "speaker", "truth"))
    return clips_digest(clip_hashes(*columns))


def _planned_name(prediction: Prediction, planned: set[str], same: Mapping[str, str | None]) -> str:
    """Name the speaker as the plan does: `corpus/speaker` over several corpora, `speaker` over a single one."""
    qualified = speaker_id(prediction, same)
    return qualified if qualified in planned else qualified.removeprefix(f"{prediction.corpus}/")


def speaker_id(prediction: Prediction, same: Mapping[str, str | None]) -> str:
    """Name the speaker, as `corpus/speaker`; under one name where two are one person (folds.speaker_aliases)."""
    qualified = f"{prediction.corpus}/{prediction.speaker}"
    return same.get(qualified) or qualified
