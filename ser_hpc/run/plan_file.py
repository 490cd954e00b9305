"""Read plan.json, and check that it is what the launcher wrote and asks for every fold with every seed.

It is compared with the run's identity, and that with its settings and labels. Needs neither shards nor torch.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ser_hpc.core.errors import UserError, listed
from ser_hpc.run import identity
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.run.sealed import unseal

PLAN_FORMAT = 2
_NEEDED = ("name", "demo", "classes", "label_set", "corpora", "dropped", "protocol", "notes", "seeds", "folds", "trials")
_PLAN_AGAIN = "launch the run again with the command that made it: it plans anew, and keeps what is trained"


def read_plan(run: RunDir) -> dict[str, Any]:
    """Return the plan, if it is the one that was written and asks for every fold with every seed: else a mean over its trials
    would be one over some. Raises UserError."""
    plan = run.read_plan()
    if plan.get("format") not in (1, PLAN_FORMAT):
        raise UserError(f"{run.plan} has format {plan.get('format')!r}; this version reads the formats 1 and {PLAN_FORMAT}")
    if plan["format"] > 1 or run.identity.exists():
        plan = _as_planned(run, plan)
    if lacking := [name for name in _NEEDED if name not in plan]:
        raise UserError(f"{run.plan} is damaged: it lacks {listed(lacking)}; launch the run again: that plans anew")
    every = {Trial(seed, fold["fold"]) for seed in plan["seeds"] for fold in plan["folds"]}
    if not every or len(plan["trials"]) != len(every) or {Trial(**trial) for trial in plan["trials"]} != every:
        raise UserError(f"{run.plan} is damaged: its trials are not each of its folds once with each of its seeds")
    if others := [trial for trial in run.trials_on_disk() if trial not in every and run.trial(trial).is_done]:
        raise UserError(
            f"{run.path} holds trials that its plan does not ask for: {listed(others)}; {_PLAN_AGAIN}, or remove them"
        )
    return plan


def _as_planned(run: RunDir, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the plan without its checksum, compared with the run's identity, and that with settings and labels."""
    try:
        plan = unseal(plan)
    except ValueError as error:
        raise UserError(f"{run.plan}: {error}; {_PLAN_AGAIN}") from error
    if (recorded := identity.read_identity(run)) is None:
        raise UserError(f"{run.identity} is missing: nothing says which experiment this run is; {_PLAN_AGAIN}")
    identity.check_identity(run, recorded)
    folds = [fold_digest(fold) for fold in plan["folds"]]
    if lost := sorted(set(recorded.seeds) ^ set(plan["seeds"])):
        raise UserError(f"{run.plan} and {run.identity} do not name the same seeds (seed {listed(lost)}); {_PLAN_AGAIN}")
    if folds != list(recorded.folds):
        numbers = [
            k for k in range(max(len(folds), len(recorded.folds))) if folds[k : k + 1] != list(recorded.folds[k : k + 1])
        ]
        raise UserError(f"{run.plan} and {run.identity} do not name the same folds (fold {listed(numbers)}); {_PLAN_AGAIN}")
    if plan["fingerprint"] != recorded.identity.what["shards"]:
        raise UserError(f"{run.plan} is the plan of other shards than {run.identity} names; {_PLAN_AGAIN}")
    if plan["run"] != recorded.identity.digest:
        raise UserError(f"{run.plan} is the plan of another run ({plan['run'][:8]}); {_PLAN_AGAIN}")
    return plan


def fold_digest(fold: dict[str, Any]) -> str:
    """Hash all clips of a fold, as plan.json has it, with their speakers and true classes, part by part: SHA-256 in hex."""
    return hashlib.sha256("".join(fold[part]["digest"] for part in ("train", "dev", "test")).encode()).hexdigest()
