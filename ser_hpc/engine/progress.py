"""Write where a trial stands while it runs, for people and programs that watch: rank 0 writes it, training never reads it."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Self

from ser_hpc.core.atomic_io import read_json, replace_file
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.trackers import Trackers
from ser_hpc.run.attempt_end import furthest
from ser_hpc.run.run_dir import AttemptDir
from ser_hpc.run.start_marks import mark_progress

_EVERY_S = 1.0
_WARM_UP = 3  # steps that tell nothing of how long the others take: compiled, allocated and read for the first time


class Progress:
    """Writer of progress.json, at most once a second; of steps.jsonl and epochs.jsonl, less what a resume will do again.

    `before`: the attempt that this one goes on from, whose lines it takes over; `trackers` get the same numbers. `startup_s` is
    from the attempt's beginning to its first step; `save_s` how long the last save kept training waiting. `eval_steps`: dev is
    evaluated every so many steps, rather than with each epoch, and epochs.jsonl has a line for each time.
    """

    def __init__(
        self,
        attempt: AttemptDir,
        before: AttemptDir | None,
        state: TrainState,
        total_steps: int,
        epochs: int,
        trackers: Trackers | None = None,
        eval_steps: int | None = None,
        *,
        active: bool,
    ) -> None:
        self._path, self._trackers, self._active = attempt.progress, trackers, active
        self._total_steps, self._epochs, self._eval_steps = total_steps, epochs, eval_steps
        self._start_step = state.step
        self._furthest = max(furthest(attempt.path.parent), (state.epoch, state.step))
        self._clock: tuple[int, float] | None = None  # a step, and when it was made: from there on time is taken
        self._written = 0.0
        self._began = float(read_json(attempt.attempt)["started"]) if active else time.time()
        self._what, self._state = "starting", state
        self._last: dict[str, Any] = {}
        if active and before is not None and before.path == attempt.path:  # after a release
            self._last["startup_s"] = read_json(attempt.progress).get("startup_s")
        if active:
            self._steps = continue_lines(attempt.steps, before.steps if before else None, "step", state.step)
            counter = "epoch" if eval_steps is None else "evaluation"
            self._epoch_lines = continue_lines(attempt.epochs, before.epochs if before else None, counter, state.evaluation)
            self.write("starting", state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write down the step that training was at, whatever ended it: two failures at one step are a crash loop."""
        if self._active:
            if kind is not None and self._what != "stopped":
                self.write("failed", self._state)
            self._steps.close()
            self._epoch_lines.close()
            if self._trackers:
                self._trackers.close()

    def at_step(self, step: int) -> None:
        """Note the step that training is at; the one before it may not have been written yet."""
        self._state = replace(self._state, step=step)

    def step(self, state: TrainState, loss: float, lr: float, grad_norm: float) -> None:
        """Write a line after an optimizer step; `state.step` counts it already."""
        self._state = state
        self._last.setdefault("startup_s", round(time.time() - self._began, 1))
        if self._clock is None and state.step - self._start_step >= _WARM_UP:
            self._clock = state.step, awake_s()
        if self._active:
            norm = grad_norm if math.isfinite(grad_norm) else None
            line = {"step": state.step - 1, "epoch": state.epoch, "loss": loss, "lr": lr, "grad_norm": norm}
            self._steps.write(json.dumps(line) + "\n")
            self._last["loss"] = loss
            if self._trackers:
                self._trackers.log(state.step, {"train/loss": loss, "train/lr": lr, "train/grad_norm": grad_norm})
            if awake_s() - self._written > _EVERY_S:
                self.write("training", state)

    def evaluation(
        self, state: TrainState, train_loss: float, dev_uar: float, dev_loss: float, others: dict[str, dict[str, float]]
    ) -> None:
        """Write a line after dev was evaluated; `state.evaluation` counts it already. `others`: dev scores of other tasks."""
        if self._active:
            number = state.evaluation - 1
            line = {
                **({"epoch": number} if self._eval_steps is None else {"evaluation": number, "step": state.step}),
                "train_loss": train_loss,
                "dev_uar": dev_uar,
                "dev_loss": dev_loss,
                "best": state.best_evaluation == number,
                **({"dev": _finite(others)} if others else {}),
            }
            self._epoch_lines.write(json.dumps(line) + "\n")
            self._last["dev_uar"] = dev_uar
            if self._trackers:
                scores = {f"dev/{task}/{name}": score for task, of_task in others.items() for name, score in of_task.items()}
                self._trackers.log(
                    state.step, {"train/epoch_loss": train_loss, "dev/uar": dev_uar, "dev/loss": dev_loss, **scores}
                )
            self.write("training", state)

    def note(self, **numbers: float | None) -> None:
        """Add these to progress.json from now on."""
        self._last |= numbers

    def write(self, what: str, state: TrainState) -> None:
        """Replace progress.json now. Not synced to disk: a heartbeat may be lost, and syncing would slow training."""
        self._what, self._state = what, state
        if not self._active:
            return
        self._written = awake_s()
        # A stop has saved: the next start goes on from there, even where one before had come further and lost it.
        if (state.epoch, state.step) > self._furthest or (what == "stopped" and state.step > self._start_step):
            mark_progress()
        left = None
        if self._clock is not None and state.step > self._clock[0]:
            a_step = (self._written - self._clock[1]) / (state.step - self._clock[0])
            left = a_step * (self._total_steps - state.step)
        fields = {
            "state": what,
            "step": state.step,
            "steps": self._total_steps,
            "epoch": state.epoch,
            "epochs": self._epochs,
            "best_dev_uar": state.best_uar if state.best_epoch >= 0 else None,
            "seconds_left": left,
            **self._last,
            "updated": time.time(),
        }
        _replace(self._path, fields)
        self._steps.flush()
        self._epoch_lines.flush()

    def sync(self) -> None:
        """Bring lines to the disk before a checkpoint: a resume from it must find those of every step before it."""
        if self._active:
            for file in (self._steps, self._epoch_lines):
                file.flush()
                os.fsync(file.fileno())


def write_encoding(attempt: AttemptDir, made: int, blocks: int) -> None:
    """Replace progress.json while a frozen encoder runs over each clip, before there are steps: `made` of so many blocks."""
    _replace(attempt.progress, {"state": "encoding", "blocks_made": made, "blocks": blocks, "updated": time.time()})


def _replace(path: Path, fields: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(fields), encoding="utf-8")
    replace_file(temporary, path)


def continue_lines(path: Path, before: Path | None, counter: str, until: int) -> TextIOWrapper:
    """Open for appending, with the whole lines of `before` whose counter is below `until`."""
    lines = []
    if before is not None and before.exists():
        for line in before.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)[counter] < until:
                    lines.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                break  # cut off in the middle by a kill: what follows is as old
    path.write_text("".join(lines), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _finite(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Return scores as strict JSON, null where undefined."""
    return {
        task: {name: None if math.isnan(score) else round(score, 6) for name, score in of_task.items()}
        for task, of_task in scores.items()
    }
