"""What a trial tells while it runs, for people and programs that watch: rank 0 writes it, training never reads it."""

from __future__ import annotations

import json
import math
import os
import time
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ser_hpc.engine.checkpoint import TrainState
from ser_hpc.results.run_dir import TrialDir

_EVERY_S = 1.0


class Progress:
    """progress.json at most once a second; steps.jsonl and epochs.jsonl line by line, less what a resume will do again."""

    def __init__(self, trial: TrialDir, state: TrainState, total_steps: int, epochs: int, *, active: bool) -> None:
        self._trial, self._active = trial, active
        self._total_steps, self._epochs = total_steps, epochs
        self._start_step, self._start = state.step, time.monotonic()
        self._written = 0.0
        self._last: dict[str, Any] = {}
        if active:
            trial.path.mkdir(parents=True, exist_ok=True)
            self._steps = _reopen(trial.steps, "step", state.step)
            self._epoch_lines = _reopen(trial.epochs, "epoch", state.epoch)
            self.tell("starting", state)

    def step(self, state: TrainState, loss: float, lr: float, grad_norm: float) -> None:
        """After an optimizer step; `state.step` counts it already."""
        if self._active:
            norm = grad_norm if math.isfinite(grad_norm) else None
            line = {"step": state.step - 1, "epoch": state.epoch, "loss": loss, "lr": lr, "grad_norm": norm}
            self._steps.write(json.dumps(line) + "\n")
            self._last["loss"] = loss
            if time.monotonic() - self._written > _EVERY_S:
                self.tell("training", state)

    def epoch(self, state: TrainState, train_loss: float, dev_uar: float, dev_loss: float) -> None:
        """After an epoch's evaluation; `state.epoch` counts it already."""
        if self._active:
            line = {
                "epoch": state.epoch - 1,
                "train_loss": train_loss,
                "dev_uar": dev_uar,
                "dev_loss": dev_loss,
                "best": state.best_epoch == state.epoch - 1,
            }
            self._epoch_lines.write(json.dumps(line) + "\n")
            self._last["dev_uar"] = dev_uar
            self.tell("training", state)

    def tell(self, what: str, state: TrainState, **more: Any) -> None:
        """Write progress.json now."""
        if not self._active:
            return
        done = state.step - self._start_step
        elapsed = time.monotonic() - self._start
        left = elapsed / done * (self._total_steps - state.step) if done else None
        write_progress(
            self._trial,
            state=what,
            step=state.step,
            steps=self._total_steps,
            epoch=state.epoch,
            epochs=self._epochs,
            best_dev_uar=state.best_uar if state.best_epoch >= 0 else None,
            seconds_left=left,
            **self._last,
            **more,
        )
        self._steps.flush()
        self._epoch_lines.flush()
        self._written = time.monotonic()

    def sync(self) -> None:
        """Before a checkpoint: a resume from it must find the lines of every step before it."""
        if self._active:
            for file in (self._steps, self._epoch_lines):
                file.flush()
                os.fsync(file.fileno())


def write_progress(trial: TrialDir, **fields: Any) -> None:
    """Replace progress.json. Not synced to disk: a heartbeat may be lost, and syncing once a second would slow training."""
    trial.path.mkdir(parents=True, exist_ok=True)
    temporary = trial.progress.with_name(f".{trial.progress.name}.tmp")
    temporary.write_text(json.dumps(fields | {"updated": time.time()}), encoding="utf-8")
    temporary.replace(trial.progress)


def _reopen(path: Path, counter: str, until: int) -> TextIOWrapper:
    """Open for appending, keeping the whole lines whose counter is below `until`."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)[counter] < until:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                break  # cut off in the middle by a kill: what follows is as old
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")
