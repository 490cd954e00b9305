"""Define the settings of trackers: where a trial's numbers go while it trains, besides its own files (which stay the truth).

They can change no result, and are no part of a run's identity. From outside the package: derive from `TrackerSettings`, add
settings, and write `build`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from ser_hpc.config.choice import Choice
from ser_hpc.config.section import Section


class TrackerSettings(Section):
    """Where a trial's numbers go."""

    kind: str = ""

    def build(self, folder: Path, trial: str, first_step: int) -> Any:
        """Make an object with `log(step, numbers)`, of floats by name (train/loss, dev/uar ...), and `close()`; rank 0 alone
        calls it. `folder`: the attempt's own; `first_step`: where it goes on: what came later is made again."""
        raise NotImplementedError


class TensorBoardSettings(TrackerSettings):
    """TensorBoard's event files in the attempt's folder (`pip install 'ser-hpc[tensorboard]'`)."""

    kind: Literal["tensorboard"] = "tensorboard"


Tracker = Annotated[TrackerSettings, Choice(TrackerSettings, TensorBoardSettings)]
