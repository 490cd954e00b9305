"""Define the settings of launchers from outside the package: what starts trials in the place of this machine and Slurm.

They can change no result, and are no part of a run's identity. Derive from `LauncherSettings`, add settings, and write `build`.
"""

from __future__ import annotations

from typing import Annotated, Any

from ser_hpc.config.choice import Choice
from ser_hpc.config.section import Section


class LauncherSettings(Section):
    """What starts trials."""

    kind: str = ""

    def build(self) -> Any:
        """Make a `ser_hpc.launchers.launcher.Launcher`. Trials load these settings too: import there, and not at the top of the
        file, what only the launcher needs."""
        raise NotImplementedError


OutsideLauncher = Annotated[LauncherSettings | None, Choice(LauncherSettings, optional=True)]
