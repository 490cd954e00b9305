"""Use a launcher from outside the package (`cluster.launcher`), and remember in the run that it has trials of it.

RUN/jobs/launchers.json holds the settings of each one that was ever given trials to queue: whoever launches later, with another
launcher, still asks it what is queued, through the copy of its source in the run.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rich.console import Console

from ser_hpc.config.choice import Choice
from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.config.extension_errors import check_made, explain_errors
from ser_hpc.config.extensions import import_from
from ser_hpc.config.launchers import LauncherSettings
from ser_hpc.config.load import EXTENSIONS
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.launchers.job_state import JobState
from ser_hpc.launchers.launcher import Batch, Held, Launcher
from ser_hpc.run.experiment import Experiment
from ser_hpc.run.run_dir import RunDir, Trial


class Outside(Launcher):
    """A launcher from outside, each of whose mistakes is told with its file and line; what it queues is recorded first."""

    def __init__(self, settings: LauncherSettings) -> None:
        self.settings = settings
        with explain_errors(settings.kind):
            launcher = settings.build()
        check_made(f"{settings.kind}.build", launcher, isinstance(launcher, Launcher), "a ser_hpc.launchers.launcher.Launcher")
        self._launcher: Launcher = launcher
        self.in_foreground = self._launcher.in_foreground

    def submit(self, batch: Batch) -> Sequence[Trial]:
        if not self.in_foreground:
            _record(batch.run, self.settings)
        # Within an allocation of Slurm too: its trials are no jobs of it.
        environment = {"SER_HPC_LAUNCH": uuid.uuid4().hex, **batch.environment}
        with explain_errors(self.settings.kind):
            return tuple(self._launcher.submit(replace(batch, environment=environment)))

    def active(self, run: RunDir) -> Mapping[Trial, JobState]:
        with explain_errors(self.settings.kind):
            return dict(self._launcher.active(run))

    def states(self, run: RunDir) -> tuple[Mapping[Trial, JobState], Sequence[str]]:
        with explain_errors(self.settings.kind):
            states, notes = self._launcher.states(run)
            return dict(states), tuple(notes)

    def cancel(self, run: RunDir) -> Sequence[str]:
        with explain_errors(self.settings.kind):
            return tuple(self._launcher.cancel(run))

    def resolve(self, cluster: ClusterSettings, out: Console) -> ClusterSettings:
        with explain_errors(self.settings.kind):
            return self._launcher.resolve(cluster, out)

    def uses_gpus(self, cluster: ClusterSettings) -> bool:
        with explain_errors(self.settings.kind):
            return self._launcher.uses_gpus(cluster)

    def show(self, experiment: Experiment, todo: Sequence[Trial], out: Console) -> bool:
        out.print(f"  by {self.settings.kind}")
        with explain_errors(self.settings.kind):
            return self._launcher.show(experiment, todo, out)

    def held(self, run: RunDir, cluster: ClusterSettings) -> Held:
        with explain_errors(self.settings.kind):
            return self._launcher.held(run, cluster)

    def check(self, batch: Batch) -> Sequence[str]:
        with explain_errors(self.settings.kind):
            return tuple(self._launcher.check(batch))

    def add_missing_report(self, batch: Batch) -> None:
        with explain_errors(self.settings.kind):
            self._launcher.add_missing_report(batch)


def recorded_launchers(run: RunDir, but: LauncherSettings | None = None) -> list[Outside]:
    """Build, from the run's copies, the launchers that were ever given trials of the run to queue, `but` for one.

    Raises UserError where one cannot be built any more.
    """
    found = []
    for written in _recorded(run):
        if but is None or written != but.model_dump(mode="json"):
            try:
                with import_from(run.path.resolve() / EXTENSIONS):
                    settings = Choice(LauncherSettings).validate(written)
            except ValueError as error:
                raise UserError(f"{run.launchers}: a launcher that has queued trials of it cannot be asked: {error}") from error
            assert isinstance(settings, LauncherSettings)
            found.append(Outside(settings))
    return found


def _recorded(run: RunDir) -> list[dict[str, Any]]:
    with suppress(FileNotFoundError, ValueError):
        return [written for written in read_json(run.launchers) if isinstance(written, dict)]
    return []


def _record(run: RunDir, settings: LauncherSettings) -> None:
    before, mine = _recorded(run), settings.model_dump(mode="json")
    if mine not in before:
        run.jobs.mkdir(parents=True, exist_ok=True)
        write_json(run.launchers, [*before, mine])
