"""How an attempt ended, from what it wrote down; read by the report and the status page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import read_json
from ser_hpc.run.run_dir import AttemptDir, RunDir, Trial

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """`outcome`: done, stopped, superseded, failed, hung, lost (a fellow rank died), or killed (it runs, or left no word).

    `step`: the optimizer step that it was at, None if it did not come to training; `host`: where it was; `shared`: every
    other trial of the run would end in the same error.
    """

    outcome: str
    step: int | None
    error: str | None
    host: str | None
    shared: bool = False


def read_end(attempt: AttemptDir) -> AttemptEnd:
    step: int | None = None
    with suppress(*_UNREADABLE):
        step = int(read_json(attempt.progress)["step"])
    with suppress(*_UNREADABLE):
        told = read_json(attempt.end)
        return AttemptEnd(str(told["how"]), step, told["error"], told["host"], told.get("shared") is True)
    return AttemptEnd("killed", step, None, None)


def furthest(trial: Path) -> tuple[int, int]:
    """Epochs scored and optimizer steps made, by whichever attempt in a trial's folder came furthest; (0, 0) without any."""
    reached = [(0, 0)]
    for path in trial.glob("attempt_*/progress.json"):
        with suppress(*_UNREADABLE):
            told = read_json(path)
            reached.append((int(told["epoch"]), int(told["step"])))
    return max(reached)


def trained_attempts(run: RunDir) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """What each attempt that a trial's result may rest on says of itself (attempt.json).

    One that ended before its first step left nothing in the run; one that was killed before it had said who it is is left out.
    """
    for trial in run.trials_on_disk():
        for attempt in run.trial(trial).attempts:
            end = read_end(attempt)
            if end.outcome == "killed" or end.step:
                with suppress(*_UNREADABLE):
                    yield trial, dict(read_json(attempt.attempt))
