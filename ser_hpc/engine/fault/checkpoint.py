"""Keep a trial's state on disk, for `loop` and `supervisor`: one format for all strategies, no pickle, the marker last.

    checkpoints/step_00000120.safetensors    weights and AdamW moments by parameter name, full and fp32
    checkpoints/step_00000120.json           the marker: TrainState and the tensors' checksum, written after them
    checkpoints/best_0004.safetensors        weights of the best evaluation on dev; their checksum is in the TrainState

An attempt writes into its own folder and goes on from the newest sound checkpoint of any attempt before it. Random numbers,
data order and learning rate need no saving: they are pure functions of (seed, step, micro-batch).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ser_hpc.core.atomic_io import DISK_FULL_ERRNOS, follow_umask, read_json, write_aside, write_json
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.core.errors import UserError
from ser_hpc.engine.distributed.strategy import TrainTensors
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.memory.budget import Budget
from ser_hpc.run.run_dir import AttemptDir, TrialDir

KEEP = 2
_WORST = -1e30  # finite: the state is strict JSON
# Of TrainTensors: what goes into the file of tensors, and what into the marker.
_PARTS = ("model", "exp_avg", "exp_avg_sq", "ema")
_NUMBERS = ("updates", "loss_scale", "good_steps", "base", "late_updates")


@dataclass(frozen=True, slots=True)
class TrainState:
    """The state that a resume needs besides tensors. `epoch`: the one under way, from 0; once its last step is evaluated, the
    next; `evaluation` counts those of dev: the epochs, unless train.eval_steps says otherwise.

    `best_score` chose the best evaluation (train.select_by), in `best_epoch`, whose dev UAR is `best_uar`; `stale_evaluations`
    have been no better since. `epoch_loss` / `epoch_weight` is the mean training loss since the last evaluation; `budget`: how
    steps are cut from now on.
    """

    step: int = 0
    epoch: int = 0
    evaluation: int = 0
    best_uar: float = -1.0
    best_score: float = -1.0
    best_epoch: int = -1
    best_evaluation: int = -1
    best_sha256: str = ""
    stale_evaluations: int = 0
    epoch_loss: float = 0.0
    epoch_weight: float = 0.0
    seconds: float = 0.0
    budget: Budget | None = None

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        saved = {"best_score": saved.get("best_uar", -1.0)} | saved  # before there were other scores than UAR
        if "stale_epochs" in saved:  # before there were other evaluations than an epoch's
            saved |= {"evaluation": saved["epoch"], "best_evaluation": saved["best_epoch"]}
            saved["stale_evaluations"] = saved.pop("stale_epochs")
        budget = saved.get("budget")
        return cls(**{**saved, "budget": Budget.from_json(budget) if budget else None})

    def after_evaluation(self, score: float, dev_uar: float, steps_per_epoch: int) -> TrainState:
        """Return the state once dev is evaluated at its step; the first of equally good evaluations stays the best.

        `score`: what chooses it, higher is better; nan is worst.
        """
        number = self.evaluation
        after = replace(self, epoch=self.step // steps_per_epoch, evaluation=number + 1, epoch_loss=0.0, epoch_weight=0.0)
        score = _WORST if math.isnan(score) else score
        if score > self.best_score or self.best_evaluation < 0:
            epoch = (self.step - 1) // steps_per_epoch
            best = replace(after, best_score=score, best_uar=dev_uar, best_epoch=epoch, best_evaluation=number)
            return replace(best, stale_evaluations=0)
        return replace(after, stale_evaluations=self.stale_evaluations + 1)


@dataclass(frozen=True, slots=True)
class Saved:
    """The checkpoint to resume from: `attempt` wrote it; `damaged` has a sentence about each newer one that was passed over."""

    state: TrainState
    tensors: TrainTensors | None
    attempt: AttemptDir | None
    damaged: tuple[str, ...]


def restore(trial: TrialDir, attempt: AttemptDir, world: World) -> Saved:
    """Find what `attempt` goes on from: the newest sound checkpoint of the newest attempt that has one; rank 0 chooses it.

    The best weights of that attempt, which may be dropped from now on, are taken over into this one.
    """
    saved = _newest(trial) if world.is_main else None
    number, step = world.broadcast_numbers(*((saved.attempt.number, saved.state.step) if saved and saved.attempt else (0, 0)))
    if saved is not None:
        for sentence in saved.damaged:
            print(sentence, flush=True)
        _link_best(attempt, saved)
        return saved
    if not number:
        return Saved(TrainState(), None, None, ())
    before = trial.attempt(number)
    return Saved(*_load(_marker(before, step)), before, ())


def _newest(trial: TrialDir) -> Saved:
    damaged: list[str] = []
    for attempt in reversed(trial.attempts):
        for marker in _markers(attempt):
            try:
                state, tensors = _load(marker)
                if state.best_evaluation >= 0:
                    _sound(attempt.best(state.best_evaluation), state.best_sha256)
                return Saved(state, tensors, attempt, tuple(damaged))
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                damaged.append(f"checkpoint {marker.with_suffix('.safetensors')} is damaged ({error}) and was passed over")
    return Saved(TrainState(), None, None, tuple(damaged))


def _link_best(attempt: AttemptDir, saved: Saved) -> None:
    if saved.attempt is None or saved.state.best_evaluation < 0 or saved.attempt == attempt:
        return
    source, target = (place.best(saved.state.best_evaluation) for place in (saved.attempt, attempt))
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(source, temporary)


class Writer:
    """Context manager: writes checkpoints beside training; the tensors handed over are copies, one is written at a time."""

    def __init__(self, trial: TrialDir, attempt: AttemptDir) -> None:
        self._trial, self._attempt = trial, attempt
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.seconds = 0.0
        """How long the last save took to be on the disk."""

    def save(self, state: TrainState, tensors: TrainTensors) -> None:
        self.wait()
        self._pending = self._pool.submit(self._save, state, tensors)

    def wait(self) -> None:
        """Wait until what was handed over is on the disk. Raises UserError if the disk is full."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _save(self, state: TrainState, tensors: TrainTensors) -> None:
        start = awake_s()
        _save(self._trial, self._attempt, state, tensors)
        self.seconds = awake_s() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)


def _save(trial: TrialDir, attempt: AttemptDir, state: TrainState, tensors: TrainTensors) -> None:
    """Write one checkpoint and drop all but the newest two; those of older attempts once there are two of this one."""
    flat = {f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(tensors, part).items()}
    marker = _marker(attempt, state.step)
    path = marker.with_suffix(".safetensors")
    try:
        # The same step may be saved again after its epoch's evaluation: its old marker must not vouch for the new tensors.
        marker.unlink(missing_ok=True)
        digest = save_weights(path, flat)
        numbers = {name: getattr(tensors, name) for name in _NUMBERS}
        write_json(marker, {"state": asdict(state), **numbers, "sha256": digest})
    except (OSError, SafetensorError) as error:
        if not _disk_is_full(error):
            raise
        there = ", ".join(str(int(marker.stem.removeprefix("step_"))) for marker in _markers(attempt)) or "none of this attempt"
        raise UserError(
            f"the checkpoint of step {state.step} does not fit on the disk (or quota) of {path.parent}: {error}. "
            f"Kept: {there}. Free some space and run again; training goes on from there."
        ) from error
    newest = _markers(attempt)[:KEEP]
    _drop(attempt, newest, {TrainState.from_json(read_json(marker)["state"]).best_evaluation for marker in newest})
    if len(newest) == KEEP:
        for older in trial.attempts:
            if older.number < attempt.number:
                shutil.rmtree(older.checkpoints, ignore_errors=True)


def save_weights(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors whole or not at all; returns their file's sha256."""
    with write_aside(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        follow_umask(temporary)
        return _sha256(temporary)


def clear(trial: TrialDir, attempt: AttemptDir, best_evaluation: int) -> None:
    """Drop everything but the best weights: the trial is done."""
    _drop(attempt, [], {best_evaluation})
    for other in trial.attempts:
        if other != attempt:
            shutil.rmtree(other.checkpoints, ignore_errors=True)


def _load(marker: Path) -> tuple[TrainState, TrainTensors]:
    path, saved = marker.with_suffix(".safetensors"), read_json(marker)
    _sound(path, saved["sha256"])
    # An earlier version called the part of the moving average so.
    flat = {re.sub("^average/", "ema/", name): tensor for name, tensor in load_file(path).items()}
    saved = {"late_updates": {}} | saved  # before anything was released later
    fields: dict[str, Any] = {name: saved[name] for name in _NUMBERS}
    for part in _PARTS:
        fields[part] = {k.removeprefix(f"{part}/"): v for k, v in flat.items() if k.startswith(f"{part}/")}
    return TrainState.from_json(saved["state"]), TrainTensors(**fields)


def _sound(path: Path, sha256: str) -> None:
    if _sha256(path) != sha256:
        raise ValueError(f"the checksum of {path.name} differs")


def _drop(attempt: AttemptDir, markers: list[Path], best_evaluations: set[int]) -> None:
    """Drop all but these. Markers go first; what a kill left half-written, or without its marker, goes too."""
    keep = {path.with_suffix(suffix) for path in markers for suffix in (".json", ".safetensors")}
    keep |= {attempt.best(number) for number in best_evaluations}
    old = {path for pattern in ("step_*", "best_*") for path in attempt.checkpoints.glob(pattern)} - keep
    for path in sorted(old, key=lambda path: path.suffix) + list(attempt.checkpoints.glob(".*.tmp")):
        with suppress(FileNotFoundError):
            path.unlink()


def _marker(attempt: AttemptDir, step: int) -> Path:
    return attempt.checkpoints / f"step_{step:08d}.json"


def _markers(attempt: AttemptDir) -> list[Path]:
    """List the markers, newest first."""
    return sorted(attempt.checkpoints.glob("step_*.json"), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk_is_full(error: BaseException) -> bool:
    """Look for a full disk: safetensors reports the system's errors in words alone."""
    return getattr(error, "errno", None) in DISK_FULL_ERRNOS or any(
        f"os error {number}" in str(error) for number in DISK_FULL_ERRNOS
    )
