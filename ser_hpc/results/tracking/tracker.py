"""Define what a tracker is, and choose one by name: one of the package's, or `module:Class` from outside of it.

A tracker's library is imported only when it is asked for.
"""

from __future__ import annotations

import importlib
import urllib.error
import urllib.request
from types import ModuleType

from ser_hpc.config.extensions import import_outside, is_outside
from ser_hpc.core.errors import UserError, listed
from ser_hpc.results.tracking.record import Record

TRACKERS = {
    "tensorboard": "TensorBoardTracker",
    "mlflow": "MlflowTracker",
    "wandb": "WandbTracker",
    "trackio": "TrackioTracker",
}
_ANSWER_S = 10.0


class Tracker:
    """A place where runs are kept. `url`: where it is, None: where it is by itself; `project`: what runs are compared in.

    The run's record comes first, then those of its trials.
    """

    def __init__(self, url: str | None, project: str) -> None:
        self.url, self.project = url, project

    def keep(self, record: Record) -> int:
        """Add what is not there yet of a record; return how many numbers were new."""
        raise NotImplementedError

    def close(self) -> str:
        """Finish, and return where the run is to be seen."""
        raise NotImplementedError


def make_tracker(kind: str, url: str | None, project: str) -> Tracker:
    """Make the tracker of that name. Raises UserError: there is none, its library is missing, or it does not answer."""
    if kind in TRACKERS:
        module = importlib.import_module(f"{__package__}.{kind}_tracker")
        made: Tracker = getattr(module, TRACKERS[kind])(url, project)
        return made
    if not is_outside(kind):
        raise UserError(f"--to is {kind!r}, but there are {listed(list(TRACKERS))} (or module:Class, from outside the package)")
    try:
        return import_outside(kind, Tracker)(url, project)
    except ValueError as error:
        raise UserError(f"--to: {error}") from error


def import_library(name: str) -> ModuleType:
    """Import a tracker's library. Raises UserError naming the extra that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"the package {name} cannot be imported ({error}): pip install 'ser-hpc[{name}]'") from None


def check_answers(url: str) -> None:
    """Raise UserError unless something answers at a URL within seconds, whatever it says: libraries try for minutes."""
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S):
            pass
    except urllib.error.HTTPError:
        pass  # it answers; whether this user may is asked when it is used
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"no tracker answers at {url} ({reason}). Is the server running, and does this machine reach it? Compute nodes "
            "often have no network: call this from a login node"
        ) from None
