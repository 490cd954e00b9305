"""Write and read plan.json, and check that it is what the launcher wrote and asks for every fold with every seed.

It is compared with the run's identity, and that with its settings and labels. Needs neither shards nor torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ser_hpc.core.errors import UserError, listed
from ser_hpc.run import identity
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.run.sealed import unseal, write_sealed

PLAN_FORMAT = 3
# What the formats 1 and 2 called some keys, of the plan and of a part of a fold: the old to the new one.
_NEW_KEYS = {"same_speakers": "speaker_aliases"}
_NEW_PART_KEYS = {"words": "description", "num": "num_clips"}
_PARTS = ("train", "dev", "test")
_NEEDED = ("name", "demo", "classes", "label_set", "corpora", "dropped", "protocol", "notes", "seeds", "folds", "trials")
_PLAN_AGAIN = "launch the run again with the command that made it: it plans anew, and keeps what is trained"


def write_plan(run: RunDir, plan: dict[str, Any], schema: int) -> None:
    """Write the plan of a run under that schema of the settings: an earlier one keeps the format that its own code reads."""
    if schema < 3:
        old, old_in_part = ({new: old for old, new in keys.items()} for keys in (_NEW_KEYS, _NEW_PART_KEYS))
        plan = _with_keys(plan, old, old_in_part) | {"format": 2}
    write_sealed(run.plan, plan)


def _with_keys(plan: dict[str, Any], keys: Mapping[str, str], part_keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the plan with other names of its keys, and of those of its folds' parts."""

    def renamed(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
        return {names.get(key, key): value for key, value in record.items()}

    folds = [fold | {part: renamed(fold[part], part_keys) for part in _PARTS} for fold in plan["folds"]]
    return renamed(plan, keys) | {"folds": folds}


def read_plan(run: RunDir) -> dict[str, Any]:
    """Return the plan, if it is the one that was written and asks for every fold with every seed: else a mean over its trials
    would be one over some. One of an earlier format is returned with today's keys. Raises UserError."""
    plan = run.read_plan()
    if plan.get("format") not in range(1, PLAN_FORMAT + 1):
        raise UserError(f"{run.plan} has format {plan.get('format')!r}; this version reads the formats 1 to {PLAN_FORMAT}")
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
    return plan if plan["format"] == PLAN_FORMAT else _with_keys(plan, _NEW_KEYS, _NEW_PART_KEYS)


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
    if plan["fingerprint"] != recorded.identity.content["shards"]:
        raise UserError(f"{run.plan} is the plan of other shards than {run.identity} names; {_PLAN_AGAIN}")
    if plan["run"] != recorded.identity.digest:
        raise UserError(f"{run.plan} is the plan of another run ({plan['run'][:8]}); {_PLAN_AGAIN}")
    return plan


def fold_digest(fold: dict[str, Any]) -> str:
    """Hash all clips of a fold, as plan.json has it, with their speakers and true classes, part by part: SHA-256 in hex."""
    return hashlib.sha256("".join(fold[part]["digest"] for part in _PARTS).encode()).hexdigest()
