"""Read how an attempt ended from the files that it wrote, for the report and the status page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import read_json
from ser_hpc.run.run_dir import AttemptDir, RunDir, Trial

TrainedAttempt = tuple[Trial, dict[str, Any]]  # and its attempt.json
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """An attempt's end. `outcome`: done, stopped, superseded, failed, hung, lost (another rank died), or killed (no end.json).

    `step`: the optimizer step that it was at, None if it did not come to training; `host`: where it was; `shared`: every
    other trial of the run would end in the same error.
    """

    outcome: str
    step: int | None
    error: str | None
    host: str | None
    shared: bool = False


def read_end(attempt: AttemptDir) -> AttemptEnd:
    """Return how an attempt ended; `killed` where there is no end.json."""
    step: int | None = None
    with suppress(*_UNREADABLE):
        step = int(read_json(attempt.progress)["step"])
    with suppress(*_UNREADABLE):
        record = read_json(attempt.end)
        outcome = record["outcome"] if "outcome" in record else record["how"]  # as it was called before
        return AttemptEnd(str(outcome), step, record["error"], record["host"], record.get("shared") is True)
    return AttemptEnd("killed", step, None, None)


def furthest(trial: Path) -> tuple[int, int]:
    """Return epochs scored and optimizer steps made by the attempt in `trial` that came furthest; (0, 0) without any."""
    reached = [(0, 0)]
    for path in trial.glob("attempt_*/progress.json"):
        with suppress(*_UNREADABLE):
            progress = read_json(path)
            reached.append((int(progress["epoch"]), int(progress["step"])))
    return max(reached)


def trained_attempts(run: RunDir) -> Iterator[TrainedAttempt]:
    """Yield attempt.json of each attempt that a trial's result may rest on.

    One that ended before its first step left nothing in the run; one that was killed before it had said who it is is left out.
    """
    for trial in run.trials_on_disk():
        for attempt in run.trial(trial).attempts:
            end = read_end(attempt)
            if end.outcome == "killed" or end.step:
                with suppress(*_UNREADABLE):
                    yield trial, dict(read_json(attempt.attempt))
