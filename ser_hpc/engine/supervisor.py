"""Decide between steps what all ranks do next, for the training loop: stop, save, give way to a newer attempt, make it again.

Whoever stops, all stop: ranks agree after each step, and save together. Rank 0 alone looks at the clock and at the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ser_hpc.config.settings import TrainSettings
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.engine.distributed.strategy import Strategy
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.ema import WeightEma
from ser_hpc.engine.fault import checkpoint
from ser_hpc.engine.fault.preemption import StopFlag, Stopped, Superseded
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.finish import PartScores
from ser_hpc.engine.frozen_params import FrozenParameters
from ser_hpc.engine.step_metrics import StepMetrics
from ser_hpc.run import attempt
from ser_hpc.run.run_dir import AttemptDir, TrialDir
from ser_hpc.shards import RATE

_LOOK_S = 1.0  # how often the disk is asked whether a newer attempt has begun


@dataclass(frozen=True, slots=True)
class Decision:
    """What all ranks have agreed to do after a step. `stop`: the reason, or None."""

    stop: str | None
    superseded: bool
    save: bool
    out_of_memory: bool


@dataclass(kw_only=True)
class Supervisor:
    """Keeps a trial's ranks together and its state on disk. `began`: when this start did, by awake_s()."""

    trial: TrialDir
    attempt: AttemptDir
    train: TrainSettings
    world: World
    stop: StopFlag
    watchdog: Watchdog
    began: float
    strategy: Strategy
    ema: WeightEma
    base: FrozenParameters
    metrics: StepMetrics
    writer: checkpoint.Writer

    def __post_init__(self) -> None:
        self._zero = self.began - self.metrics.state.seconds  # when it would have begun, had it never stopped
        self._saved, self._last_save, self._save_s, self._last_look = self.metrics.state, awake_s(), 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Return how long the trial has taken, over all its attempts."""
        return awake_s() - self._zero

    def agree(self, *, out_of_memory: bool = False) -> Decision:
        """Ask all ranks what is to happen after this step; each of them has come this far, which is a beat of its watchdog."""
        self.watchdog.beat()
        reason, now, superseded = self.stop.reason(self._save_s + self.writer.seconds), awake_s(), False
        if self.world.rank == 0 and now - self._last_look > _LOOK_S:
            self._last_look, superseded = now, self.attempt.is_superseded
        due = self.world.rank == 0 and now - self._last_save > self.train.checkpoint_minutes * 60
        stopping, *others = self.world.any_rank(reason is not None, superseded, due, out_of_memory)
        return Decision((reason or "another rank was asked to") if stopping else None, *others)

    def obey(self, decision: Decision) -> None:
        """Save, if that was agreed on. Raises Stopped once all is saved, Superseded before anything is."""
        if decision.superseded:
            raise Superseded(f"{self.trial.trial}: a newer attempt than this, {self.attempt.number}, has begun; this one ends")
        if decision.save or decision.stop:
            self.metrics.read(all=True)
            if self.metrics.state != self._saved:
                self.save()
        if decision.stop:
            self.writer.wait()
            self.metrics.progress.write("stopped", self.metrics.state)
            self.world.barrier()  # the first rank to leave has the others ended, and rank 0 may still be writing
            raise Stopped(f"{self.trial.trial} stopped after step {self.metrics.state.step}, saved ({decision.stop})")

    def end_evaluation(self, dev: PartScores) -> None:
        """Take over the scores of dev, keep the weights if they are the best so far, and save."""
        before = self.metrics.state
        state = before.after_evaluation(dev.chosen, dev.uar, self.metrics.schedule.steps_per_epoch)
        if state.best_evaluation == before.evaluation:
            best = self.strategy.weights()
            self.writer.wait()  # a save under way drops the weights that its own state does not name
            if best is not None:
                best = self.base.without(best | self.ema.tensors())
                state = replace(state, best_sha256=checkpoint.save_weights(self.attempt.best(before.evaluation), best))
        self.metrics.state = state
        self.metrics.progress.evaluation(state, before.epoch_loss / before.epoch_weight, dev.uar, dev.loss, dev.others)
        self.watchdog.beat()
        self.save()

    def release(self) -> None:
        """Save, and let the model go, for a start that trains more of it: all is on the disk when this returns."""
        if self.metrics.state != self._saved:
            self.save()
        self.writer.wait()
        self.strategy.close()
        self.world.barrier()
        self.watchdog.beat()

    def reduce_budget(self, samples: int, step: int) -> None:
        """Note that memory ran out at a step, which is made again with micro-batches of at most so many samples."""
        budget = self.metrics.state.budget
        assert budget is not None, "it was found before the first step"
        self.metrics.read(all=True)
        self.metrics.state = replace(self.metrics.state, budget=replace(budget, samples=samples, reduced=True))
        if self.world.is_main:
            attempt.describe_attempt(self.attempt, budget_s=round(samples / RATE, 3))
            print(f"memory ran out at step {step}: made again, {samples / RATE:.0f} s of audio at a time", flush=True)

    def save(self) -> None:
        """Hand a checkpoint of the present state over to be written; all ranks together."""
        start, state, progress = awake_s(), self.metrics.state, self.metrics.progress
        progress.sync()
        tensors = self.strategy.tensors()
        if tensors is not None:
            model = self.base.without(tensors.model)
            tensors = replace(tensors, model=model, ema=self.ema.tensors(), base=self.base.sha256)
            self.writer.save(replace(state, seconds=start - self._zero), tensors)
        self._saved, self._last_save = state, awake_s()
        self._save_s = self._last_save - start
        progress.note(save_s=round(self._save_s, 3))
