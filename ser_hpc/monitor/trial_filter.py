"""Select trials of a run: those that the command line asks for, and of many those that need a look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ser_hpc.core.errors import UserError
from ser_hpc.monitor.trial_states import RUNNING, STATES
from ser_hpc.monitor.trial_status import TrialStatus

# In the order in which they are told; of `waiting`, `not started` and `done` one knows enough by their number.
_NEED_A_LOOK = ("failed", "lost", "held", "suspended", "stopped", "unknown", *RUNNING, "requeued")
ORDER = (*_NEED_A_LOOK, "waiting", "not started", "done")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TrialFilter:
    """Trials in any of `states`, of any of `seeds` and any of `folds`; None: whichever."""

    states: frozenset[str] | None = None
    seeds: frozenset[int] | None = None
    folds: frozenset[int] | None = None

    def __bool__(self) -> bool:
        """Return whether anything was asked for."""
        return self != EVERYTHING

    def of(self, statuses: Iterable[TrialStatus]) -> tuple[TrialStatus, ...]:
        """Return the selected ones, in the same order."""
        return tuple(
            status
            for status in statuses
            if _among(status.state, self.states)
            and _among(status.trial.seed, self.seeds)
            and _among(status.trial.fold, self.folds)
        )


EVERYTHING = TrialFilter()


def parse_trial_filter(states: str | None, seeds: str | None, folds: str | None) -> TrialFilter:
    """Parse a command line's `failed,running`, `0,3`. `running` is also what starts or ends. Raises UserError."""
    return TrialFilter(_states(states), _numbers("--seed", seeds), _numbers("--fold", folds))


def needing_attention(statuses: Sequence[TrialStatus]) -> list[TrialStatus]:
    """Select the trials that need a look; the worst come first."""
    return sorted(
        (status for status in statuses if status.state in _NEED_A_LOOK),
        key=lambda status: _NEED_A_LOOK.index(status.state),
    )


def _among(value: _T, wanted: frozenset[_T] | None) -> bool:
    return wanted is None or value in wanted


def _states(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    named = {" ".join(word.replace("-", " ").replace("_", " ").split()) for word in text.split(",")}
    if wrong := sorted(named - set(STATES)):
        raise UserError(f"--state knows no {wrong[0]!r}; it takes any of these, with commas between: {', '.join(STATES)}")
    return frozenset(named | (set(RUNNING) if "running" in named else set()))


def _numbers(option: str, text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    numbers = [number.strip() for number in text.split(",")]
    if wrong := [number for number in numbers if not (number.isascii() and number.isdigit())]:
        raise UserError(f"{option} takes numbers with commas between, as 0,3; {wrong[0]!r} is none")
    return frozenset(map(int, numbers))
