"""Hand a trial's numbers on to the trackers that the settings name, while it trains; rank 0 alone has any.

A tracker never ends or changes a training: one that fails is said once, in the log, and left out from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ser_hpc.config.extension_errors import describe_error
from ser_hpc.config.trackers import TensorBoardSettings, TrackerSettings
from ser_hpc.core.errors import UserError


def build_trackers(settings: Sequence[TrackerSettings], folder: Path, trial: str, first_step: int) -> Trackers | None:
    """Build a trial's trackers, as `Trackers` takes them; None if the settings name none."""
    return Trackers(settings, folder, trial, first_step) if settings else None


class Trackers:
    """All trackers of a trial. `folder`: the attempt's; `first_step`: the step at which it begins or goes on."""

    def __init__(self, settings: Sequence[TrackerSettings], folder: Path, trial: str, first_step: int) -> None:
        self._trackers: dict[str, Any] = {}
        for number, one in enumerate(settings):
            name = one.kind if [each.kind for each in settings].count(one.kind) == 1 else f"{number} ({one.kind})"
            with _Guard(self._trackers, name):
                self._trackers[name] = _build(one, folder, trial, first_step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hand on numbers by name, of so many steps."""
        for name, tracker in list(self._trackers.items()):
            with _Guard(self._trackers, name):
                tracker.log(step, dict(numbers))

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            with _Guard(self._trackers, name):
                tracker.close()


class _Guard:
    """Leaves out the tracker of that name when the block fails, and says why."""

    def __init__(self, trackers: dict[str, Any], name: str) -> None:
        self._trackers, self._name = trackers, name

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, Exception | SystemExit):
            return False
        self._trackers.pop(self._name, None)
        print(f"tracker {self._name} is left out from now on: {describe_error(error)}", flush=True)
        return True


def _build(settings: TrackerSettings, folder: Path, trial: str, first_step: int) -> Any:
    if isinstance(settings, TensorBoardSettings):
        return TensorBoard(folder / "tensorboard", first_step)
    return settings.build(folder, trial, first_step)


class TensorBoard:
    """Event files of TensorBoard."""

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("the package tensorboard is missing: pip install 'ser-hpc[tensorboard]'") from None
        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step or None)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        self._writer.close()
