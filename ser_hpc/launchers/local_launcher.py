"""Run trials on this machine, as a launcher: shown while they run, and what failed named at the end."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.text import Text

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.core.errors import counted
from ser_hpc.launchers.detect import Machine, describe_machine
from ser_hpc.launchers.foreground import ForegroundLauncher
from ser_hpc.launchers.launcher import Batch
from ser_hpc.launchers.local import LocalJob, log_path, run_trials
from ser_hpc.run.experiment import Experiment
from ser_hpc.run.run_dir import RunDir, Trial

Watch = Callable[[RunDir, Sequence[Trial], Console], AbstractContextManager[Callable[[Sequence[LocalJob]], None]]]


def unwatched(
    run: RunDir, trials: Sequence[Trial], out: Console
) -> AbstractContextManager[Callable[[Sequence[LocalJob]], None]]:
    """Show nothing while trials run."""
    return nullcontext(lambda jobs: None)


class LocalLauncher(ForegroundLauncher):
    """Run as many trials at a time as fit on this machine. `watch`: shows them while they run."""

    def __init__(self, watch: Watch = unwatched) -> None:
        self._watch = watch

    def uses_gpus(self, cluster: ClusterSettings) -> bool:
        return bool(describe_machine(cluster).gpus)

    def show(self, experiment: Experiment, todo: Sequence[Trial], out: Console) -> bool:
        each = "; each process trains several, one after another" * experiment.settings.trains_in_turn
        out.print(f"  here: {_machine(experiment).description()}{each}")
        out.print(f"then\n  python -m ser_hpc.report {shlex.quote(str(experiment.run.path))}", soft_wrap=True)
        return True

    def run(self, batch: Batch) -> None:
        run, todo, out, settings = batch.run, batch.todo, batch.out, batch.settings
        machine, per_job = _machine(batch.experiment), settings.trials_per_job if settings.trains_in_turn else 1
        out.print(machine.description() + ".")
        try:
            with self._watch(run, todo, out) as watch:
                most = settings.cluster.max_starts_without_progress
                codes = run_trials(run, todo, machine, watch, batch.environment, alone=False, per_job=per_job, max_starts=most)
        except KeyboardInterrupt:
            out.print(f"Interrupted; what was trained is saved in {run.path}. The same command goes on from there.")
            raise
        for trial, exit_code in codes.items():
            if exit_code:
                failed = (f"{trial} ended with exit code {exit_code}", "red")
                out.print(Text.assemble(failed, f"; its log: {log_path(run, trial)}"), soft_wrap=True)
        if left := len(todo) - len(codes):
            out.print(f"{counted(left, 'trial')} not started: each would end in the same error. Mend it, then launch again.")


def _machine(experiment: Experiment) -> Machine:
    return describe_machine(experiment.settings.cluster, num_folds=len(experiment.folds.folds))
