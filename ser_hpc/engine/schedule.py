"""Say at which steps the training loop turns to something else: an epoch ends, dev is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from ser_hpc.config.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of a trial: `epochs` of `steps_per_epoch`; dev is evaluated after every `eval_steps`, and after the last."""

    epochs: int
    steps_per_epoch: int
    eval_steps: int

    @classmethod
    def of_settings(cls, train: TrainSettings, clips: int) -> Schedule:
        """Make that of a training part of which an epoch has so many `clips`."""
        steps_per_epoch = -(-clips // train.global_batch)
        return cls(train.epochs, steps_per_epoch, train.eval_steps or steps_per_epoch)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def evaluations(self) -> int:
        return -(-self.total_steps // self.eval_steps)

    def epoch(self, step: int) -> int:
        """Return the epoch of the step of this number, both from 0."""
        return step // self.steps_per_epoch

    def evaluation_step(self, number: int) -> int:
        """Return the number of steps after which dev is evaluated for the time of this number, from 0."""
        return min((number + 1) * self.eval_steps, self.total_steps)

    def next_stop(self, step: int, evaluation: int) -> int:
        """Return the number of steps after which an epoch ends, or the evaluation of this number is due, whichever is first."""
        return min((self.epoch(step) + 1) * self.steps_per_epoch, self.evaluation_step(evaluation))
