"""Training one trial, from its plan to its predictions, in one function to be read from top to bottom.

Every rank runs it alike. What a step learns from, its dropout and its learning rate are functions of (seed, step) alone, so
stopping at any step and calling `train_trial` again, on as many ranks, ends in the same weights as never having stopped.
Whoever stops, all stop: ranks agree after each step, and save together.
The test part is touched once, after the dev part alone has chosen the epoch.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ser_hpc.config.settings import Settings
from ser_hpc.data.batches import Source
from ser_hpc.data.order import epoch_size, epoch_steps, mix, step_micro_batches, tighter
from ser_hpc.engine import checkpoint, feed, gpu, outcome, precision, probe, states, strategy
from ser_hpc.engine.attempt import add as describe
from ser_hpc.engine.average import WeightAverage
from ser_hpc.engine.checkpoint import TrainState
from ser_hpc.engine.compiled import Regions
from ser_hpc.engine.damage import DamagedClips
from ser_hpc.engine.ddp import autocast
from ser_hpc.engine.evaluate import Forward, predict
from ser_hpc.engine.feed import TrialData
from ser_hpc.engine.frozen import FrozenBase
from ser_hpc.engine.ledger import Ledger
from ser_hpc.engine.losses import class_weights
from ser_hpc.engine.optim import learning_rate
from ser_hpc.engine.pace import Pace
from ser_hpc.engine.preemption import Asked, StopFlag, Stopped, Superseded
from ser_hpc.engine.progress import Progress
from ser_hpc.engine.step import gradients
from ser_hpc.engine.watchdog import Watchdog
from ser_hpc.engine.world import World
from ser_hpc.errors import UserError, listed
from ser_hpc.models.classifier import build
from ser_hpc.models.norms import RunningStatistics
from ser_hpc.results.predictions import Prediction
from ser_hpc.results.run_dir import AttemptDir, RunDir, TrialDir
from ser_hpc.shards.audio import RATE

_PROBED = 64  # steps whose clips the data side is measured on
_LOOK_S = 1.0  # how often the disk is asked whether a newer attempt has begun


@gpu.kernels_in_words()
def train_trial(
    trial: TrialDir, attempt: AttemptDir, settings: Settings, data: TrialData, world: World, stop: StopFlag, watchdog: Watchdog
) -> None:
    """Train, choose the epoch on dev, predict dev and test, write the marker.

    Raises Stopped when asked to stop (all is saved), Superseded when a newer attempt of the trial is there, UserError when the
    loss is not finite, the disk is full, or a single clip takes more memory than there is.
    """
    settings = precision.settle(settings, RunDir(trial.path.parents[1]), world)
    gpu.reproducible(settings.train.deterministic)
    train, seed, fold = settings.train, trial.trial.seed, data.fold
    began = time.monotonic()
    max_samples = feed.max_samples(settings)
    weights = class_weights(data.targets[fold.train.positions], len(data.classes), train.class_weights)[data.targets]
    groups = feed.groups(settings.data.balance, data)
    steps_an_epoch = -(-epoch_size(len(fold.train.positions), groups) // train.global_batch)
    total_steps = train.epochs * steps_an_epoch

    saved = checkpoint.newest(trial, world)
    if world.is_main:
        for sentence in saved.damaged:
            print(sentence, flush=True)
        checkpoint.adopt_best(attempt, saved)
    state, seconds_before = saved.state, saved.state.seconds
    make = partial(build, settings.model, len(data.classes), mix(seed, 0x57E1))
    model, width = make(), None
    base = FrozenBase.of(model)
    if saved.tensors is not None:
        base.check(saved.tensors.base)
    sounds = feed.source(settings, data, weights, world)
    source: Source = sounds
    if settings.states_suffice:
        source, width = states.source(model, base, sounds, trial, settings, data, weights, world, stop, watchdog)
        model = make(width)
    samples = model.front.costs(np.minimum(data.index.num_samples, max_samples or data.index.num_samples))
    budget = probe.find(model, settings, samples[fold.train.positions], world, state.budget)
    if world.is_main:
        describe(attempt, strategy=train.strategy, precision=train.precision, budget_s=round(budget.samples / RATE, 3))
    state, how = replace(state, budget=budget), budget.cut(world.size, train.accumulation, model.front)
    if saved.tensors is not None:
        base.load(model, saved.tensors.model)
    regions = Regions(model.encoder, train)
    ranks = strategy.build(model, train, world, saved.tensors)
    statistics = RunningStatistics(ranks.module, train.global_batch)
    average = WeightAverage(ranks.module, train.average, saved.tensors.average if saved.tensors else {})
    progress = Progress(attempt, saved.attempt, state, total_steps, train.epochs, active=world.is_main)

    train_clips, most = len(fold.train.positions), settings.data.max_damaged
    damaged = DamagedClips(attempt, saved.attempt, state, data.index, train_clips, most, active=world.is_main)

    with source, progress, checkpoint.Writer(trial, attempt) as writer:
        pace, ledger = Pace(), Ledger()
        last_save, last_look, last_saved, save_s = time.monotonic(), 0.0, state, 0.0

        def score(forward: Forward, positions: np.ndarray) -> np.ndarray:
            return predict(forward, source, positions, samples, how, len(data.classes), world)

        def read(*, all: bool = False) -> None:
            """What steps came to becomes part of the state: of every step but the newest, whose numbers are still under way."""
            nonlocal state
            for entry in ledger.read(all=all):
                losses, causes = entry.told
                _refuse_non_finite(losses, entry.clips, data, state)
                if not entry.norm.isfinite() and train.precision != "fp16":  # whose scaler skips such a step by itself
                    _refuse_non_finite(entry.norm.expand_as(losses), entry.clips, data, state, "gradient")
                loss = float(losses.double() @ torch.from_numpy(weights[entry.clips]).double())
                state = state.after_step(loss, entry.weight)
                progress.step(state, loss / entry.weight, entry.lr, float(entry.norm))
                damaged.add(entry.clips, causes.numpy(), state)

        def save() -> None:
            nonlocal last_save, last_saved, save_s
            start = time.monotonic()
            progress.sync()
            tensors = ranks.tensors()
            if tensors is not None:
                tensors = replace(tensors, model=base.without(tensors.model), average=average.tensors(), base=base.sha256)
                writer.save(replace(state, seconds=seconds_before + start - began), tensors)
            last_save, last_saved = time.monotonic(), state
            save_s = last_save - start
            progress.saved(save_s)

        def asked(*, out_of_memory: bool = False) -> Asked:
            """What is to happen after this step, for all ranks. Rank 0 alone looks at the clock and at the disk."""
            nonlocal last_look
            watchdog.beat()
            regions.look()
            reason, now, superseded = stop.reason(save_s + writer.seconds), time.monotonic(), False
            if world.is_main and now - last_look > _LOOK_S:
                last_look, superseded = now, attempt.is_superseded
            due = world.is_main and now - last_save > train.checkpoint_minutes * 60
            stopping, *others = world.any(reason is not None, superseded, due, out_of_memory)
            return Asked((reason or "another rank was asked to") if stopping else None, *others)

        def obey(wanted: Asked) -> None:
            if wanted.superseded:
                raise Superseded(f"{trial.trial}: a newer attempt than this one, {attempt.number}, has begun; this one ends")
            if wanted.save or wanted.stop:
                read(all=True)
                if state != last_saved:
                    save()
            if wanted.stop:
                writer.wait()
                progress.tell("stopped", state)
                world.barrier()  # the first rank to leave has the others ended, and rank 0 may still be writing
                raise Stopped(f"{trial.trial} stopped after step {state.step}, saved ({wanted.stop})")

        obey(asked())  # it may have been asked to stop while it started
        while state.epoch < train.epochs and (train.patience is None or state.stale_epochs < train.patience):
            # Train on what is left of this epoch.
            ranks.training(True)
            steps = epoch_steps(fold.train.positions, seed, state.epoch, train.global_batch, groups)
            steps = steps[state.step - state.epoch * steps_an_epoch :]
            if pace.data is None:
                some = step_micro_batches(steps[:_PROBED], samples, how, world.rank)
                pace.probe(source, [micro for step in some for micro in step])
            micro_batches = step_micro_batches(steps, samples, how, world.rank)
            stepped = zip(steps, pace.steps(feed.grouped(source, micro_batches)), strict=True)
            for number, (step, batches) in enumerate(stepped, start=state.step):
                progress.now(number)
                weight = float(weights[step.positions].sum())
                told = gradients(ranks, batches, len(step), weight, (seed, number), world.device, statistics)
                wanted = asked(out_of_memory=told is None)
                if told is None or wanted.out_of_memory:
                    ranks.forget()
                    how = tighter(how, step.positions, samples[step.positions])
                    budget = budget.below(how.budget_samples)
                    if world.is_main:
                        limit = how.budget_samples / RATE
                        describe(attempt, budget_s=round(limit, 3))
                        print(f"memory ran out at step {number}: made again, {limit:.0f} s of audio at a time", flush=True)
                    break
                lr = learning_rate(number, total_steps, train)
                ledger.add(step.positions, weight, lr, world.sum(told), ranks.step(lr))
                statistics.update(len(step), world.sum)
                average.update(number + 1)
                read()
                if world.is_main and (said := pace.news(world.size)):
                    print(said, flush=True)
                    progress.speeds(pace)
                obey(wanted)
            read(all=True)
            state = replace(state, budget=budget)
            if state.step < (state.epoch + 1) * steps_an_epoch:
                continue  # memory ran out: the same step is made again, cut smaller

            # Score the dev part; keep the weights if they are the best so far.
            ranks.training(False)
            with average.in_place(world):
                logits = score(ranks.forward, fold.dev.positions)
            dev_uar, dev_loss = outcome.score(logits, data.targets[fold.dev.positions], len(data.classes))
            train_loss, state = state.epoch_loss / state.epoch_weight, state.after_epoch(dev_uar)
            if state.best_epoch == state.epoch - 1:
                best = ranks.weights()
                writer.wait()  # a save under way drops the weights that its own state does not name
                if best is not None:
                    best = base.without(best | average.tensors())
                    digest = checkpoint.save_weights(attempt.best(state.best_epoch), best)
                    state = replace(state, best_sha256=digest)
            progress.epoch(state, train_loss, dev_uar, dev_loss)
            watchdog.beat()
            save()

        # Read the test part, once, with the epoch that dev chose; on a plain copy, whatever the strategy was.
        writer.wait()
        ranks.close()
        world.barrier()
        progress.tell("predicting", state)
        model = make(width)
        base.load(model, checkpoint.load_weights(attempt.best(state.best_epoch)))
        model.to(world.device).eval()
        found: list[Prediction] = []
        for part, positions in (("dev", fold.dev.positions), ("test", fold.test.positions)):
            with autocast(train, world.device):
                found += outcome.predicted(part, positions, score(model, positions), data)
        if world.is_main:
            state = replace(state, seconds=seconds_before + time.monotonic() - began)
            how_trained = {"ranks": world.size, "strategy": train.strategy, "precision": train.precision}
            outcome.complete(trial, attempt, state, found, how_trained)
        progress.tell("done", state)


def _refuse_non_finite(values: Tensor, clips: np.ndarray, data: TrialData, state: TrainState, what: str = "loss") -> None:
    """Nothing of such a step is ever saved. `values`: one for each of `clips`."""
    if bool(torch.isfinite(values).all()):
        return
    bad = clips[~torch.isfinite(values).cpu().numpy()]
    when = f"step {state.step} (epoch {state.epoch + 1})"
    names = listed([data.index.metadata.utterance_id[position] for position in bad])
    raise UserError(
        f"the {what} is not finite at {when}, on {len(bad)} of its {len(clips)} clips: {names}. "
        "Nothing of this step was saved. Lower train.lr, use train.precision=fp32, or look at these clips."
    )
