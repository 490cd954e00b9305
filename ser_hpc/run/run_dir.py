"""The one owner of every file name of a run.

RUN/                              runs/<name>-<8 hex of what changes the result>
  settings.yaml                   the resolved settings
  labels.yaml                     the label set: what class each annotation stands for, as it was when the run was made
  identity.json                   what the run's name is a hash of; the folds, and every seed that was ever planned
  folds.npy                       the side of every clip in every fold (fold_file.py)
  plan.json                       classes, folds in words and counts, trials, notes; written before any trial starts
  precision.json                  what all trials compute in, where the settings left it to the first of them (once)
  report.html  report.md          written by the report, for people
  report.json  predictions.parquet   and for programs: scores, and every test prediction
  jobs/                           what was submitted (submitted.jsonl; launchers.json), the launcher's files, every rank's log
  code/<12 hex>/                  the code that its jobs run
  seed_0/fold_2/                  one trial
    attempt_0001/                 one start of it, which writes nowhere else
      attempt.json                who runs it, where, with which code
      end.json                    how it ended; none: it runs, or was killed without a word
      progress.json               where it stands (a heartbeat; never read by training)
      damaged.jsonl               training clips that could not be read, if there are any
      steps.jsonl  epochs.jsonl   loss per optimizer step; loss and dev UAR per evaluation of dev
      checkpoints/                step_00000120: model, optimizer, state (two are kept while training); best_0004: weights
      predictions.jsonl           dev and test clips, once each
    done.json                     the marker, written last, once: the trial is complete, by the attempt that it names, of
                                  this run, seed and fold, with these very predictions

Beside the runs, in run.root: features/<12 hex>/ (engine/feature_cache.py), which all of them share.

Attempts are how an older start that wakes up (a lost node's ranks) can never write over a newer one: a number is taken by
making its folder, which only one can, and no file of a trial but the marker is ever shared.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import read_json
from ser_hpc.core.errors import UserError


@dataclass(frozen=True, slots=True, order=True)
class Trial:
    """A seed and a fold: one job."""

    seed: int
    fold: int

    def __str__(self) -> str:
        return f"seed {self.seed} fold {self.fold}"


@dataclass(frozen=True, slots=True)
class AttemptDir:
    """The folder of one attempt, and its file names."""

    path: Path
    number: int

    @property
    def attempt(self) -> Path:
        return self.path / "attempt.json"

    @property
    def end(self) -> Path:
        return self.path / "end.json"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def steps(self) -> Path:
        return self.path / "steps.jsonl"

    @property
    def epochs(self) -> Path:
        return self.path / "epochs.jsonl"

    @property
    def damaged(self) -> Path:
        return self.path / "damaged.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    def best(self, evaluation: int) -> Path:
        """Return the path of the weights that were the best so far at an evaluation of dev, counted from 0."""
        return self.checkpoints / f"best_{evaluation:04d}.safetensors"

    @property
    def is_superseded(self) -> bool:
        """Tell whether there is a newer attempt: numbers are taken one after another, so the next one is there."""
        return (self.path.parent / _attempt_name(self.number + 1)).exists()


@dataclass(frozen=True, slots=True)
class TrialDir:
    """The folder of a trial, and its file names."""

    path: Path
    trial: Trial

    @property
    def run(self) -> RunDir:
        return RunDir(self.path.parents[1])

    @property
    def feature_cache(self) -> Path:
        """Return the folder of what a frozen encoder made of clips, which all runs beside this one share."""
        return self.run.path.absolute().parent / "features"

    @property
    def done(self) -> Path:
        return self.path / "done.json"

    @property
    def is_done(self) -> bool:
        return self.done.exists()

    @property
    def weights(self) -> Path:
        """Return the path of the best dev epoch's weights, of a trial that is done."""
        return self.path / str(read_json(self.done)["weights"])

    @property
    def attempts(self) -> tuple[AttemptDir, ...]:
        """List the attempts, oldest first."""
        found = (re.fullmatch(r"attempt_(\d{4,})", name) for name in _names_in(self.path))
        return tuple(self.attempt(number) for number in sorted(int(name[1]) for name in found if name))

    def attempt(self, number: int) -> AttemptDir:
        return AttemptDir(self.path / _attempt_name(number), number)

    @property
    def newest(self) -> AttemptDir | None:
        return attempts[-1] if (attempts := self.attempts) else None

    @property
    def current(self) -> AttemptDir:
        """Return the attempt that completed the trial; else the newest; else the first one to come."""
        if self.is_done:
            with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
                return self.attempt(int(read_json(self.done)["attempt"]))
        return self.newest or self.attempt(1)

    def claim(self) -> AttemptDir:
        """Make the next attempt's folder, for this caller alone: that is atomic, on network file systems too."""
        self.path.mkdir(parents=True, exist_ok=True)
        while True:
            taken = self.newest
            attempt = self.attempt(taken.number + 1 if taken else 1)
            with suppress(FileExistsError):
                attempt.path.mkdir()
                return attempt


def _names_in(folder: Path) -> list[str]:
    """List the names in a folder; none, where there is no folder."""
    try:
        return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _attempt_name(number: int) -> str:
    return f"attempt_{number:04d}"


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run directory, and its file names."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.yaml"

    @property
    def labels(self) -> Path:
        return self.path / "labels.yaml"

    @property
    def identity(self) -> Path:
        return self.path / "identity.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def folds(self) -> Path:
        return self.path / "folds.npy"

    @property
    def precision(self) -> Path:
        return self.path / "precision.json"

    @property
    def report_json(self) -> Path:
        return self.path / "report.json"

    @property
    def report_md(self) -> Path:
        return self.path / "report.md"

    @property
    def ensemble(self) -> Path:
        """Return what a run says of itself that was made of others' predictions (results/ensembles.py)."""
        return self.path / "ensemble.json"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    @property
    def predictions_table(self) -> Path:
        return self.path / "predictions.parquet"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    @property
    def submitted(self) -> Path:
        return self.jobs / "submitted.jsonl"

    @property
    def launchers(self) -> Path:
        return self.jobs / "launchers.json"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def launcher_lock(self) -> Path:
        return self.path / ".launcher"

    def trial(self, trial: Trial) -> TrialDir:
        return TrialDir(self.path / f"seed_{trial.seed}" / f"fold_{trial.fold}", trial)

    def trials_on_disk(self) -> list[Trial]:
        """List the trials that have a folder, whatever the plan says."""
        seeds = [seed for name in _names_in(self.path) if (seed := re.fullmatch(r"seed_(\d+)", name))]
        found = ((seed, re.fullmatch(r"fold_(\d+)", name)) for seed in seeds for name in _names_in(self.path / seed[0]))
        return sorted(Trial(int(seed[1]), int(fold[1])) for seed, fold in found if fold)

    def read_plan(self) -> dict[str, Any]:
        """Read the plan as written by the launcher. Raises UserError if this is no run directory."""
        try:
            plan: dict[str, Any] = read_json(self.plan)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.path} is not a run directory: it has no {self.plan.name}") from None
        except ValueError as error:
            raise UserError(f"{self.plan} is damaged ({error}); run the launch command again to plan anew") from error
        if not isinstance(plan, dict) or "trials" not in plan:
            shards = isinstance(plan, dict) and "shards" in plan
            what = "but packed shards: see python -m ser_hpc.inspect" if shards else f"its {self.plan.name} plans no trials"
            raise UserError(f"{self.path} is not a run directory, {what}")
        return plan

    def trials(self) -> tuple[Trial, ...]:
        """Return every trial that the plan asks for, in the order in which they start."""
        return tuple(Trial(**trial) for trial in self.read_plan()["trials"])
