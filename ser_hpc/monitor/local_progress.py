"""Show trials that run on this machine: a bar per trial in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ser_hpc.launchers.local import LocalJob
from ser_hpc.monitor.status_screen import format_duration_s
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.run_dir import RunDir, Trial

_LINE_EVERY_S = 15.0


@contextmanager
def show_progress(run: RunDir, trials: Sequence[Trial], console: Console) -> Iterator[Callable[[Sequence[LocalJob]], None]]:
    """Yield a function that shows all jobs so far; it may be called as often as one likes."""
    if not console.is_terminal:
        yield _Lines(run, console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%", markup=False),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        tasks = {trial: progress.add_task(str(trial), total=1.0, text="waiting") for trial in trials}
        yield _Bars(run, progress, tasks)


class _Bars:
    def __init__(self, run: RunDir, progress: Progress, tasks: dict[Trial, TaskID]) -> None:
        self._run, self._progress, self._tasks = run, progress, tasks

    def __call__(self, jobs: Sequence[LocalJob]) -> None:
        for job, trial in _under_way(jobs):
            heartbeat = _read(self._run, job, trial)
            self._progress.update(self._tasks[trial], completed=_part_done(heartbeat), text=_describe(heartbeat))


class _Lines:
    """For logs: a line with the time when a trial starts, ends, and as it goes on, every quarter of a minute at most."""

    def __init__(self, run: RunDir, console: Console) -> None:
        self._run, self._console = run, console
        self._printed: dict[Trial, tuple[float, str, str]] = {}

    def __call__(self, jobs: Sequence[LocalJob]) -> None:
        for job, trial in _under_way(jobs):
            heartbeat = _read(self._run, job, trial)
            when, state, before = self._printed.get(trial, (0.0, "", ""))
            text, now = _describe(heartbeat), time.monotonic()
            going_on = trial not in job.codes and now - when > _LINE_EVERY_S and text != before
            if heartbeat["state"] != state or going_on:
                clock = time.strftime("%H:%M:%S")
                self._console.print(f"{clock}  {trial}  {_part_done(heartbeat):4.0%}  {text}", soft_wrap=True)
                self._printed[trial] = (now, heartbeat["state"], text)


def _under_way(jobs: Sequence[LocalJob]) -> Iterator[tuple[LocalJob, Trial]]:
    """Yield the trials that have been come to; of those of a job the others wait for their turn."""
    for job in jobs:
        yield from ((job, trial) for trial in job.trials if trial in job.begun | job.codes.keys() or trial == job.current)


def _read(run: RunDir, job: LocalJob, trial: Trial) -> dict[str, Any]:
    """Read the trial's heartbeat, overruled by how its processes ended."""
    attempt = run.trial(trial).current
    try:
        heartbeat: dict[str, Any] = json.loads(attempt.progress.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        heartbeat = {"state": "starting"}
    if heartbeat.get("updated", 0.0) < job.started:
        heartbeat = {"state": "starting"}  # the heartbeat was an earlier attempt's
    if heartbeat["state"] == "failed" or (job.codes.get(trial) and heartbeat["state"] != "stopped"):
        heartbeat |= {"state": "failed", "error": read_end(attempt).error or "see its log"}
    return heartbeat


def _part_done(heartbeat: dict[str, Any]) -> float:
    return 1.0 if heartbeat["state"] == "done" else heartbeat.get("step", 0) / max(1, heartbeat.get("steps", 1))


def _describe(heartbeat: dict[str, Any]) -> str:
    if heartbeat["state"] == "failed":
        return f"failed: {heartbeat['error'].splitlines()[0]}"
    if heartbeat["state"] == "encoding":
        return f"the encoder runs over each clip once: {heartbeat['blocks_made']} of {heartbeat['blocks']} blocks"
    parts = (
        [heartbeat["state"]]
        if heartbeat["state"] != "training"
        else [f"epoch {min(heartbeat['epoch'] + 1, heartbeat['epochs'])}/{heartbeat['epochs']}"]
    )
    if heartbeat.get("loss") is not None:
        parts.append(f"loss {heartbeat['loss']:.3f}")
    if heartbeat.get("dev_uar") is not None:
        parts.append(f"dev UAR {heartbeat['dev_uar']:.3f} (best {heartbeat['best_dev_uar']:.3f})")
    if heartbeat["state"] == "training" and heartbeat.get("seconds_left") is not None:
        parts.append(f"about {format_duration_s(heartbeat['seconds_left'])} left")
    return "  ".join(parts)
