"""How an attempt ended, from what it wrote down; read by the next attempt, the report and the status page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ser_hpc.files import read_json
from ser_hpc.results.run_dir import AttemptDir, RunDir, Trial

NOT_AGAIN = "it is not tried again"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True, slots=True)
class End:
    """`how`: done, stopped, superseded, failed, hung, lost (a fellow rank died), or killed (it runs, or left no word).

    `step`: the optimizer step that it was at, None if it did not come to training; `trained`: it made a step of its own;
    `host`: where it was; `shared`: every other trial of the run would end in the same error.
    """

    how: str
    step: int | None
    error: str | None
    host: str | None
    trained: bool
    shared: bool = False

    @property
    def is_refusal(self) -> bool:
        """It only found that those before it had failed too often."""
        return self.error is not None and NOT_AGAIN in self.error


def how_it_ended(attempt: AttemptDir) -> End:
    step: int | None = None
    trained = False
    with suppress(*_UNREADABLE):
        progress = read_json(attempt.progress)
        step, trained = int(progress["step"]), "startup_s" in progress
    with suppress(*_UNREADABLE):
        told = read_json(attempt.end)
        return End(str(told["how"]), step, told["error"], told["host"], trained, told.get("shared") is True)
    return End("killed", step, None, None, trained)


def trained(run: RunDir) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """What each attempt that a trial's result may rest on says of itself (attempt.json).

    One that ended before its first step left nothing in the run; one that was killed before it had said who it is is left out.
    """
    for trial in run.begun():
        for attempt in run.trial(trial).attempts:
            end = how_it_ended(attempt)
            if end.how == "killed" or end.step:
                with suppress(*_UNREADABLE):
                    yield trial, dict(read_json(attempt.attempt))
