"""The one owner of every file name of a run.

RUN/                              runs/<name>-<8 hex of what changes the result>
  settings.yaml                   the resolved settings
  plan.json                       classes, folds in words and counts, trials, notes; written before any trial starts
  report.json  report.md          written by the report
  jobs/                           the launcher's files and every rank's log
  seed_0/fold_2/                  one trial
    progress.json                 where the trial stands (a heartbeat; never read by training)
    steps.jsonl  epochs.jsonl     loss per optimizer step; loss and dev UAR per epoch
    checkpoints/step_00000120/    model, optimizer, state; two are kept while training
    checkpoints/best/             the weights of the best dev epoch
    predictions.jsonl             dev and test clips, once each
    done.json                     the marker, written last: the trial is complete
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_hpc.errors import UserError
from ser_hpc.files import read_json


@dataclass(frozen=True, slots=True, order=True)
class Trial:
    """A seed and a fold: one job."""

    seed: int
    fold: int

    def __str__(self) -> str:
        return f"seed {self.seed} fold {self.fold}"


@dataclass(frozen=True, slots=True)
class TrialDir:
    path: Path
    trial: Trial

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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.safetensors"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def done(self) -> Path:
        return self.path / "done.json"

    @property
    def is_done(self) -> bool:
        return self.done.exists()


@dataclass(frozen=True, slots=True)
class RunDir:
    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def report_json(self) -> Path:
        return self.path / "report.json"

    @property
    def report_md(self) -> Path:
        return self.path / "report.md"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    def trial(self, trial: Trial) -> TrialDir:
        return TrialDir(self.path / f"seed_{trial.seed}" / f"fold_{trial.fold}", trial)

    def read_plan(self) -> dict[str, Any]:
        """The plan as written by the launcher. Raises UserError if this is no run directory."""
        try:
            plan: dict[str, Any] = read_json(self.plan)
        except FileNotFoundError:
            raise UserError(f"{self.path} is not a run directory: it has no {self.plan.name}") from None
        except ValueError as error:
            raise UserError(f"{self.plan} is damaged ({error}); run the launch command again to plan anew") from error
        return plan

    def trials(self) -> tuple[Trial, ...]:
        """Every trial that the plan asks for, in the order in which they start."""
        return tuple(Trial(**trial) for trial in self.read_plan()["trials"])
