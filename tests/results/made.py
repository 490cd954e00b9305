"""Changes to a run's files with everything that binds them made to fit: as if launcher or trial had written them so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ser_hpc.core.atomic_io import read_sealed, write_json, write_sealed
from ser_hpc.run import identity, predictions
from ser_hpc.run.plan import fold_digest, write_plan
from ser_hpc.run.predictions import Prediction, clip_hashes, clips_digest
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir


def rewrite(run: RunDir, trial: Trial, change: Callable[[list[Prediction]], list[Prediction]]) -> None:
    """Other predictions, and a marker that names them: as if the trial itself had written these."""
    folder = run.trial(trial)
    path = folder.current.predictions
    sha256 = predictions.write_predictions(path, change(predictions.read_predictions(path) if path.exists() else []))
    if (run.identity).exists():
        remark(folder, predictions_sha256=sha256)


def remark(folder: TrialDir, **more: Any) -> None:
    """A marker that says something else, as if the trial itself had written it."""
    write_sealed(folder.done, read_sealed(folder.done) | more)


def replan(run: RunDir, plan: dict[str, Any], who: identity.Identity | None = None) -> None:
    """Another plan, and an identity that fits: as if the launcher itself had planned it."""
    who = who or identity.read_identity(run).identity
    plan = {name: value for name, value in plan.items() if name != "sha256"} | {"run": who.digest}
    identity.write_identity(run, who, [fold_digest(fold) for fold in plan["folds"]], plan["seeds"])
    write_sealed(run.plan, plan)


def guessed(prediction: Prediction, name: str) -> Prediction:
    """The same clip, for which `name` was predicted."""
    return replace(prediction, predicted=name, probabilities={each: float(each == name) for each in prediction.probabilities})


def redigest(part: dict[str, Any], clips: list[tuple[str, str, str, str]]) -> None:
    """`clips`: corpus, id, speaker and true class of each clip that the part of a plan shall hold."""
    part["digest"] = clips_digest(clip_hashes(*zip(*clips, strict=True)))


def as_of_before(run: RunDir) -> RunDir:
    """The run as the version before planned and trained it: without checksums and digests."""
    write_plan(run, read_sealed(run.plan), 1)
    plan = read_sealed(run.plan) | {"format": 1}
    del plan["run"]
    for fold in plan["folds"]:
        for part in ("train", "dev", "test"):
            del fold[part]["digest"]
    write_json(run.plan, plan)
    run.identity.unlink()
    run.labels.unlink()
    for done in run.path.glob("seed_*/fold_*/done.json"):
        new = ("run", "seed", "fold", "predictions_sha256")
        write_json(done, {name: value for name, value in read_sealed(done).items() if name not in new})
    return run
