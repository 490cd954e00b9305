"""Define what starts trials: submit, active, states, cancel. This machine, Slurm and launchers from outside do it alike.

launch asks, in this order, under the run's lock: `held` (what is queued or running is left alone), `check` (nothing is written
yet), then writes the run and calls `submit`. status asks `states` and `cancel`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.config.settings import Settings
from ser_hpc.launchers.job_state import JobState
from ser_hpc.run import snapshot
from ser_hpc.run.experiment import Experiment
from ser_hpc.run.run_dir import RunDir, Trial


@dataclass(frozen=True, slots=True)
class Held:
    """The trials that a launcher has queued or running, with their jobs; notes on them; and the code that they were submitted
    with, by its digest."""

    trials: Mapping[Trial, JobState] = field(default_factory=dict)
    notes: Sequence[str] = ()
    codes: Mapping[str, Sequence[Trial]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """The trials `todo` of an experiment that are to be started.

    `held`: those that this launcher has queued or running already; `environment`: variables under which the trials run the
    run's own copy of the code; `out`: where lines for the user go; `lock`: descriptor of the run's lock, which a child that is
    given it holds too; None where it is not held.
    """

    experiment: Experiment
    todo: Sequence[Trial]
    held: Mapping[Trial, JobState]
    environment: Mapping[str, str]
    out: Console
    lock: int | None = None

    @property
    def run(self) -> RunDir:
        return self.experiment.run

    @property
    def settings(self) -> Settings:
        """Return the experiment's settings, as far as the code that the trials run knows them."""
        settings = self.experiment.settings
        if snapshot.trains_in_turn(self.run, self.environment.get("SER_HPC_CODE")):
            return settings
        return settings.model_copy(update={"cluster": settings.cluster.model_copy(update={"trials_per_job": 1})})

    def command(self, trial: Trial) -> list[str]:
        """Return the words of the command that runs a trial on one rank (several: under srun or torchrun); see `ser_hpc.train`
        for its exit codes. Given again, it goes on from the newest checkpoint."""
        train = [sys.executable, "-m", "ser_hpc.train", "--run-dir", str(self.run.path.resolve())]
        return [*train, "--fold", str(trial.fold), "--seed", str(trial.seed)]

    def report_command(self) -> list[str]:
        """Return the words of the command that reports on the run, for after the trials."""
        return [sys.executable, "-m", "ser_hpc.report", str(self.run.path.resolve())]


class Launcher(ABC):
    """Start trials somewhere. `in_foreground`: `submit` comes back when they have ended, and does without the run's lock."""

    in_foreground: bool = False

    @abstractmethod
    def submit(self, batch: Batch) -> Sequence[Trial]:
        """Start the trials `todo`, or queue them; return those for which there is no room now (`launch --wait` gives them
        again). The run is written already. Raises UserError if it cannot be done."""

    @abstractmethod
    def active(self, run: RunDir) -> Mapping[Trial, JobState]:
        """Return the trials that it has queued or running, with their jobs: none of these may be submitted again. Raises
        UserError if that cannot be known."""

    @abstractmethod
    def cancel(self, run: RunDir) -> Sequence[str]:
        """Stop what it has queued or running of the run; return lines that say what was done, or must be; none, if there was
        nothing. Raises UserError if it cannot be asked."""

    def states(self, run: RunDir) -> tuple[Mapping[Trial, JobState], Sequence[str]]:
        """Return the jobs of trials, also of those that have ended where it knows, and notes on what could not be asked: for
        showing, beside what the trials write themselves."""
        return self.active(run), ()

    def resolve(self, cluster: ClusterSettings, out: Console) -> ClusterSettings:
        """Return the settings as its jobs will have them."""
        return cluster

    def uses_gpus(self, cluster: ClusterSettings) -> bool:
        """Tell whether trials run on GPUs: what they would cost is estimated by that."""
        return True

    def show(self, experiment: Experiment, todo: Sequence[Trial], out: Console) -> bool:
        """Print, for a dry run, how it would start these trials; return whether they would be taken."""
        return True

    def held(self, run: RunDir, cluster: ClusterSettings) -> Held:
        """Find what it has queued or running, for a launch with these settings. The caller holds the run's lock."""
        return Held(self.active(run))

    def check(self, batch: Batch) -> Sequence[str]:
        """Look for what is in the way of a batch, before anything is written; return notes. Raises UserError with all of it."""
        return ()

    def add_missing_report(self, batch: Batch) -> None:  # noqa: B027  # most cannot
        """See that a report follows the trials `held`, where none does yet and the launcher can; there is nothing `todo`."""
