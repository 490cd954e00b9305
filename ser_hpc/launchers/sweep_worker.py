"""Train a sweep's configurations on this machine, or in this job, one after another, until none is left to ask for.

Each is a usual run, with all of its trials; what a run has finished, be it of another sweep, is not trained again. Ranks of all
configurations are forked from one process that has the imports.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from rich.console import Console

from ser_hpc.config.extensions import import_from
from ser_hpc.config.load import EXTENSIONS, load_settings
from ser_hpc.config.settings import Settings
from ser_hpc.config.sweep import Point, SweepSettings, as_overrides
from ser_hpc.core.atomic_io import file_lock
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.core.errors import UserError, listed
from ser_hpc.launchers import sweep_search, trial_checks
from ser_hpc.launchers.choose import active_trials
from ser_hpc.launchers.detect import describe_machine
from ser_hpc.launchers.local import run_trials, warm_ranks
from ser_hpc.launchers.rank_process import RankStarter
from ser_hpc.results import markdown, sweep_table
from ser_hpc.run import snapshot, start_marks
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.create_run import write_run
from ser_hpc.run.experiment import Experiment, prepare_experiment
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.run.sweep_dir import Configuration, End, SweepDir

_OTHERS = 5  # configurations that have come as far, before one is compared with them
_LOOK_S = 5.0


@dataclass
class SweepWorker:
    """One of the processes that work on a sweep. `code`: the sweep's own copy, which the trials' processes run."""

    sweep: SweepDir
    asked: SweepSettings
    code: snapshot.CodeSnapshot
    out: Console
    _ranks: RankStarter | None = None
    _models: dict[str, Any] = field(default_factory=dict)
    _held: ExitStack = field(default_factory=ExitStack)

    def work(self) -> None:
        """Train until nothing is left. Raises KeyboardInterrupt when asked to stop: then all is saved."""
        self.out.print("Configurations are trained one after another; each has a line here when it has ended.")
        with self._held:
            while True:
                with sweep_search.next_configuration(self.sweep, self.asked) as configuration:
                    if configuration is None:
                        return
                    began = awake_s()
                    end = self._train_safely(configuration)
                    self.sweep.write_end(configuration, end)
                    start_marks.mark_progress()
                    self._tell(configuration, end, awake_s() - began)
                sweep_search.tell(self.sweep, self.asked)
                sweep_table.write_table(self.sweep, sweep_table.make_table(self.sweep, self.asked.limit))

    def _train_safely(self, configuration: Configuration) -> End:
        """Train one; whatever is wrong with it ends it alone."""
        try:
            return self._train(configuration)
        except UserError as error:
            return End("failed", None, {}, error=str(error))
        except Exception as error:  # of code from outside the package, say: the others may do without it
            if isinstance(error, OSError):
                raise
            traceback.print_exc()
            return End("failed", None, {}, error=repr(error))

    def _train(self, configuration: Configuration) -> End:
        experiment = prepare_experiment(configured(self.sweep, configuration.values))
        run, folds = experiment.run, [fold.index for fold in experiment.folds.folds]
        trial_checks.check_trials(experiment, self._models)
        run.path.mkdir(parents=True, exist_ok=True)
        self._wait_for_others(run)
        with file_lock(run.lock):
            code = snapshot.choose_code(run, "refuse")
            write_run(experiment)
        steps = [[fold] for fold in folds] if self.asked.prune else [folds]
        failed: str | None = None
        for number, step in enumerate(steps, start=1):
            failed = failed or self._train_trials(experiment, [t for t in experiment.trials if t.fold in step], code)
            dev = {trial: uar for trial, uar in sweep_table.dev_uars(run).items() if trial in experiment.trials}
            seen = [fold for each in steps[:number] for fold in each]
            if failed is None and number < len(steps) and self._is_hopeless(dev, seen):
                return End("pruned", run.path.name, dev, _seconds(run, dev))
        return End("failed" if failed else "done", run.path.name, dev, _seconds(run, dev), failed)

    def _train_trials(self, experiment: Experiment, trials: Sequence[Trial], code: snapshot.CodeSnapshot) -> str | None:
        """Train what is not done of them; return why one is not, if one is not."""
        run, settings = experiment.run, experiment.settings
        if not (todo := [trial for trial in trials if not run.trial(trial).is_done]):
            return None
        same = code.digest == self.code.digest  # then one process that has the imports serves all runs
        environment = snapshot.snapshot_environment(self.code if same else code)
        machine = describe_machine(settings.cluster, num_folds=len(experiment.folds.folds))
        if self._ranks is None and same:
            self._ranks = self._held.enter_context(warm_ranks(settings, machine, environment, str(self.sweep.path)))
        run_trials(
            run,
            todo,
            machine,
            lambda jobs: None,
            environment,
            per_job=settings.trials_per_job if settings.trains_in_turn else 1,
            max_starts=settings.cluster.max_starts_without_progress,
            report=lambda line: self.out.print(line, soft_wrap=True),
            ranks=self._ranks if same else None,
        )
        left = [trial for trial in todo if not run.trial(trial).is_done]
        newest = next((attempt for trial in left if (attempt := run.trial(trial).newest)), None)
        error = read_end(newest).error if newest else None
        return f"{listed(left)}: {error or 'see the logs in its run'}" if left else None

    def _is_hopeless(self, dev: dict[Trial, float], folds: Sequence[int]) -> bool:
        """Tell whether the mean over these folds is below the median of the others' (Golovin et al. 2017)."""
        ends = (self.sweep.end(other) for other in self.sweep.configurations())
        means = [fmean(scores) for end in ends if end and (scores := _over(end.dev, folds, len(dev)))]
        return len(means) >= _OTHERS and fmean(dev.values()) < median(means)

    def _wait_for_others(self, run: RunDir) -> None:
        """Wait until nobody else trains the run: another sweep, or a launch, may have the same configuration."""
        if busy := active_trials(run):
            self.out.print(f"{run.path.name} is trained elsewhere ({next(iter(busy.values())).job}): waiting for that.")
        while busy:
            time.sleep(_LOOK_S)
            busy = active_trials(run)

    def _tell(self, configuration: Configuration, end: End, seconds: float) -> None:
        score = f"dev UAR {markdown.format_score(fmean(end.dev.values()))}" if end.dev else ""
        state = "" if end.state == "done" else f"{end.state}  "
        error = f"  {markdown.one_line(end.error)[:300]}" if end.error else ""
        values = sweep_search.describe_values(configuration.values)
        clock = time.strftime("%H:%M:%S")
        self.out.print(f"{clock}  {configuration.number}  {values}  {state}{score}{error}  {seconds:.0f} s", soft_wrap=True)


def configured(sweep: SweepDir, values: Point) -> Settings:
    """Return the settings of a configuration, to be trained by this process. Raises UserError."""
    with import_from(sweep.path / EXTENSIONS):
        settings = load_settings(sweep.settings, as_overrides(values))
    return settings.model_copy(update={"cluster": settings.cluster.model_copy(update={"kind": "local", "launcher": None})})


def _over(dev: Any, folds: Sequence[int], many: int) -> list[float]:
    """Return the scores over these folds; none, if it has not come so far."""
    scores = [uar for trial, uar in dev.items() if trial.fold in folds]
    return scores if len(scores) >= many else []


def _seconds(run: RunDir, trials: Any) -> float:
    return sum(sweep_table.trained_seconds(run.trial(trial)) for trial in trials)
