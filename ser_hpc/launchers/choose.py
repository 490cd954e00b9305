"""Choose the launcher of a run's trials; and ask all that may have trials of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.core.errors import UserError
from ser_hpc.launchers import detect
from ser_hpc.launchers.job_state import JobState
from ser_hpc.launchers.launcher import Launcher
from ser_hpc.launchers.local_launcher import LocalLauncher, Watch, unwatched
from ser_hpc.launchers.outside import Outside, recorded_launchers
from ser_hpc.launchers.slurm.launcher import SlurmLauncher
from ser_hpc.run.run_dir import RunDir, Trial


def choose_launcher(
    cluster: ClusterSettings, watch: Watch = unwatched, *, own_test: bool = True, ended: Sequence[str] = ()
) -> tuple[Launcher, str]:
    """Return the launcher that the settings ask for, and the reason in one sentence; parameters as of each launcher.

    Raises UserError where Slurm is configured (or asked for) but does not answer.
    """
    if cluster.launcher is not None:
        return Outside(cluster.launcher), f"The trials are started by {cluster.launcher.kind}, as asked."
    kind, reason = detect.choose_launcher(cluster.kind)
    return SlurmLauncher(own_test=own_test, ended=ended) if kind == "slurm" else LocalLauncher(watch), reason


def known_launchers(run: RunDir, chosen: Launcher | None = None, *, ended: Sequence[str] = ()) -> tuple[Launcher, ...]:
    """Return all that may have trials of the run queued or running, the `chosen` one first.

    Raises UserError where one from outside cannot be asked any more.
    """
    others: list[Launcher] = []
    if chosen is None or not chosen.in_foreground:  # each of those sees whichever is at work
        others.append(LocalLauncher())
    if not isinstance(chosen, SlurmLauncher):
        others.append(SlurmLauncher(is_here=False, ended=ended))
    others += recorded_launchers(run, but=chosen.settings if isinstance(chosen, Outside) else None)
    return (chosen, *others) if chosen else tuple(others)


def active_trials(run: RunDir) -> Mapping[Trial, JobState]:
    """Return the trials that are queued or running, whoever started them, with their jobs. Raises UserError if one of the
    launchers cannot be asked."""
    return {trial: job for launcher in known_launchers(run) for trial, job in launcher.active(run).items()}


def trial_states(run: RunDir) -> tuple[Mapping[Trial, JobState], tuple[str, ...]]:
    """Return the job of each trial that has one, an active one before others, and notes on what could not be asked. Never
    raises: who cannot be asked is left out."""
    states, notes = SlurmLauncher(is_here=False).states(run)
    found, told = dict(states), list(notes)
    try:
        for launcher in recorded_launchers(run):
            theirs, more = launcher.states(run)
            found |= {trial: job for trial, job in theirs.items() if trial not in found or not found[trial].is_active}
            told += more
    except UserError as error:
        told.append(f"Not all is known ({error}): this is what the trials themselves have written.")
    return found, tuple(told)
