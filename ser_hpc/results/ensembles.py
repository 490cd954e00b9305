"""Make a run of other runs' saved predictions: for each clip of a fold the mean of the probabilities of all their trials.

    ENSEMBLE/               a run directory, which is reported on and compared as any other; nothing is written into the members
      ensemble.json         the members, their predictions by SHA-256, and the weight of each in each fold
      settings.yaml ...     of the first member, whose clips, classes and folds all of them have
      seed_0/fold_2/        one trial for each fold, over all seeds of all members

A member's seeds share its weight. Weights are equal, or fitted in each fold to its dev part alone: the likelihood of the
mixture, concave in the weights, is maximised by expectation maximisation (Dempster et al. 1977).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ser_hpc.config.load import load_run_settings
from ser_hpc.core.atomic_io import seal, write_aside, write_json, write_sealed
from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.public_checkpoints import contamination
from ser_hpc.results import plan_checks
from ser_hpc.results.cross_validation import confusion_of
from ser_hpc.results.systems import System, refuse_other_folds
from ser_hpc.run import identity
from ser_hpc.run.identity import Identity
from ser_hpc.run.plan import fold_digest, read_plan, write_plan
from ser_hpc.run.predictions import Prediction, write_predictions
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.tasks.metrics import uar

_STEPS, _ENOUGH = 10_000, 1e-9  # of expectation maximisation; a change of the weights
_LEAST = 1e-12  # a probability that was rounded to zero


@dataclass(frozen=True, slots=True)
class _Member:
    """A finished run. `parts`: the dev and test predictions of each of its trials; `digests`: of their files."""

    run: RunDir
    plan: dict[str, Any]
    parts: Mapping[Trial, Mapping[str, Sequence[Prediction]]]
    digests: Sequence[str]

    @property
    def system(self) -> System:
        return System(str(self.run.path), self.plan, {trial: parts["test"] for trial, parts in self.parts.items()})

    def mean(self, fold: int, part: str) -> tuple[list[Prediction], np.ndarray]:
        """Return a part's clips in order, and their probabilities, (clips, classes), averaged over seeds."""
        each = [sorted(parts[part], key=plan_checks.clip_name) for trial, parts in self.parts.items() if trial.fold == fold]
        probabilities = [[[p.probabilities[name] for name in self.plan["classes"]] for p in clips] for clips in each]
        return each[0], np.mean(np.array(probabilities), axis=0)


def make_ensemble(paths: Sequence[Path], out: Path | None = None, *, weighted: bool = False) -> RunDir:
    """Write the ensemble of finished runs; `out`: its folder (none: beside the first of them). Raises UserError where they are
    not finished, or did not test the same clips on the same folds."""
    members = [_read(path) for path in paths]
    _refuse(members)
    first = members[0]
    described = [
        {"run": member.plan["run"], "name": member.run.path.name, "seeds": member.plan["seeds"], "predictions": member.digests}
        for member in members
    ]
    recorded = identity.read_identity(first.run)
    assert recorded is not None, "its folds have digests"
    content = recorded.identity.content | {"ensemble": {"members": described, "weighted": weighted}}
    made = Identity(recorded.identity.schema, content)
    run = RunDir(out or first.run.path.absolute().parent / f"ensemble-{made.digest[:8]}")
    _refuse_folder(run, made)
    folds = [fold["fold"] for fold in first.plan["folds"]]
    weights = {fold: _weights(members, fold, weighted=weighted) for fold in folds}
    run.path.mkdir(parents=True, exist_ok=True)
    tested = {p.corpus for parts in first.parts.values() for p in parts["test"]}
    write_sealed(
        run.ensemble,
        {
            "members": described,
            "weighted": weighted,
            "weights": {str(fold): [round(float(w), 6) for w in each] for fold, each in weights.items()},
            "warnings": sorted({told for member in members if (told := _contamination(member.run, tested))}),
        },
    )
    for path in filter(Path.exists, (first.run.settings, first.run.labels, first.run.folds)):
        with write_aside(run.path / path.name) as copy:
            copy.write_bytes(path.read_bytes())
    for fold in folds:
        _write_trial(run, made.digest, fold, members, weights[fold])
    _write_plan(run, first.plan, made)
    return run


def fit_mixture(likelihoods: np.ndarray) -> np.ndarray:
    """Return the weights (members,) of the mixture that is most likely; `likelihoods` (clips, members): each member's
    probability of each clip's true class."""
    seen = np.maximum(likelihoods, _LEAST)
    weights = np.full(seen.shape[1], 1 / seen.shape[1])
    for _ in range(_STEPS):
        shares = weights * seen
        new = (shares / shares.sum(1, keepdims=True)).mean(0)
        moved, weights = float(np.abs(new - weights).max()), new
        if moved < _ENOUGH:
            break
    return weights


def _read(path: Path) -> _Member:
    run = RunDir(path)
    if run.ensemble.exists():
        raise UserError(f"{path} is an ensemble itself: give the runs that it was made of")
    plan = read_plan(run)
    folders = [run.trial(Trial(**trial)) for trial in plan["trials"]]
    if missing := [folder.trial for folder in folders if not folder.is_done]:
        raise UserError(f"{path} is not finished: {listed(missing)} of {counted(len(folders), 'trial')}; finish it first")
    marks = [plan_checks.read_done(folder, plan) for folder in folders]
    parts = {
        folder.trial: plan_checks.read_trial_predictions(folder, plan, done)
        for folder, done in zip(folders, marks, strict=True)
    }
    return _Member(run, plan, parts, [str(done.get("predictions_sha256")) for done in marks])


def _refuse(members: Sequence[_Member]) -> None:
    """Raise UserError where these make no ensemble."""
    if len(members) == 1 and len(members[0].plan["seeds"]) == 1:
        raise UserError(f"{members[0].run.path} is one run of one seed, and no ensemble: give more runs, or launch more seeds")
    if len({tuple(member.digests) for member in members}) < len(members):
        raise UserError("two of these runs have the same predictions to the last digit: one would count twice")
    for one, other in pairwise(members):
        refuse_other_folds(one.system, other.system)
    if old := [str(member.run.path) for member in members if "run" not in member.plan]:
        raise UserError(f"{listed(old)}: planned by an earlier version, which noted no digests of its clips")


def _refuse_folder(run: RunDir, made: Identity) -> None:
    """Raise UserError where the folder is another's, and not this very ensemble."""
    if run.path.exists() and any(run.path.iterdir()):
        recorded = identity.read_identity(run)
        if not run.ensemble.exists() or (recorded is not None and recorded.identity.digest != made.digest):
            raise UserError(f"{run.path} is there already, and is not this ensemble: give --out another folder")


def _weights(members: Sequence[_Member], fold: int, *, weighted: bool) -> np.ndarray:
    if not weighted:
        return np.full(len(members), 1 / len(members))
    columns = []
    for member in members:
        clips, probabilities = member.mean(fold, "dev")
        index = {name: i for i, name in enumerate(member.plan["classes"])}
        columns.append(probabilities[np.arange(len(clips)), [index[p.truth] for p in clips]])
    return fit_mixture(np.stack(columns, axis=1))


def _write_trial(run: RunDir, digest: str, fold: int, members: Sequence[_Member], weights: np.ndarray) -> None:
    """Write a fold's predictions, and the marker of its only trial."""
    folder = run.trial(Trial(0, fold))
    attempt = folder.attempt(1)
    attempt.path.mkdir(parents=True, exist_ok=True)
    classes = members[0].plan["classes"]
    found = []
    for part in plan_checks.PARTS:
        means = [member.mean(fold, part) for member in members]
        mean = sum(weight * probabilities for weight, (_, probabilities) in zip(weights, means, strict=True))
        found += [_combined(clip, classes, row) for clip, row in zip(means[0][0], np.asarray(mean), strict=True)]
    dev = [p for p in found if p.part == "dev"]
    marker = {
        "run": digest,
        "seed": 0,
        "fold": fold,
        "attempt": 1,
        "predictions_sha256": write_predictions(attempt.predictions, found),
        "weights": None,
        "best_epoch": 0,
        "best_dev_uar": float(uar(confusion_of(dev, classes))),
    }
    write_json(folder.done, seal(marker))


def _combined(clip: Prediction, classes: Sequence[str], probabilities: np.ndarray) -> Prediction:
    odds = {name: round(float(p), 6) for name, p in zip(classes, probabilities, strict=True)}
    predicted = classes[int(probabilities.argmax())]
    return Prediction(clip.corpus, clip.utterance_id, clip.speaker, clip.part, clip.truth, predicted, odds)


def _write_plan(run: RunDir, plan: Mapping[str, Any], made: Identity) -> None:
    folds = [fold_digest(fold) for fold in plan["folds"]]
    trials = [{"seed": 0, "fold": fold["fold"]} for fold in plan["folds"]]
    own = {"run": made.digest, "name": run.path.name, "seeds": [0], "trials": trials}
    identity.write_identity(run, made, folds, [0])
    alone = {name: value for name, value in plan.items() if name not in ("tasks", "sha256")}
    write_plan(run, alone | own, made.schema)


def _contamination(run: RunDir, tested: set[str]) -> str | None:
    return contamination(getattr(load_run_settings(run.settings).model, "weights", None), tested)
