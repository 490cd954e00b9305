"""Training one trial, from its plan to its predictions, in one function to be read from top to bottom.

Every rank runs it alike. What a step learns from, its dropout and its learning rate are functions of (seed, step) alone, so
stopping at any step and calling `train_trial` again, on as many ranks, ends in the same weights as never having stopped.
Whoever stops, all stop: ranks agree after each step, and save together.
The test part is touched once, after the dev part alone has chosen the epoch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ser_hpc.config.settings import Settings
from ser_hpc.corpora.folds import Fold
from ser_hpc.data.batches import Batch, BatchSource
from ser_hpc.data.order import Cut, MicroBatch, epoch_size, epoch_steps, mix, step_micro_batches
from ser_hpc.data.workers import default_workers
from ser_hpc.engine import checkpoint, strategy
from ser_hpc.engine.average import WeightAverage
from ser_hpc.engine.checkpoint import TrainState
from ser_hpc.engine.damage import DamagedClips
from ser_hpc.engine.ddp import autocast
from ser_hpc.engine.evaluate import Forward, predict
from ser_hpc.engine.frozen import FrozenBase
from ser_hpc.engine.losses import class_weights, clip_losses
from ser_hpc.engine.optim import learning_rate
from ser_hpc.engine.pace import Pace
from ser_hpc.engine.preemption import StopFlag, Stopped, Superseded
from ser_hpc.engine.progress import Progress
from ser_hpc.engine.watchdog import Watchdog
from ser_hpc.engine.world import World
from ser_hpc.errors import UserError, listed
from ser_hpc.files import write_json_once
from ser_hpc.models.classifier import build
from ser_hpc.results import predictions
from ser_hpc.results.metrics import confusion_matrix, uar
from ser_hpc.results.predictions import Prediction
from ser_hpc.results.run_dir import AttemptDir, TrialDir
from ser_hpc.shards.audio import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.storage import Place

_PROBED = 64  # steps whose clips the data side is measured on


@dataclass(frozen=True, slots=True)
class TrialData:
    """What a trial learns from: `targets` is the class index of every clip of the index (-1: in no part).

    `roots`: for each dataset a folder with copies of the shards that it reads; none: they are read where they lie.
    """

    index: ShardIndex
    classes: tuple[str, ...]
    targets: np.ndarray
    fold: Fold
    roots: tuple[Place, ...] = ()


def train_trial(
    trial: TrialDir, attempt: AttemptDir, settings: Settings, data: TrialData, world: World, stop: StopFlag, watchdog: Watchdog
) -> None:
    """Train, choose the epoch on dev, predict dev and test, write the marker.

    Raises Stopped when asked to stop (all is saved), Superseded when a newer attempt of the trial is there, UserError when the
    loss is not finite or the disk is full.
    """
    train, seed, fold = settings.train, trial.trial.seed, data.fold
    began = time.monotonic()
    max_samples = _max_samples(settings)
    weights = class_weights(data.targets[fold.train.positions], len(data.classes), train.class_weights)[data.targets]
    groups = _groups(settings.data.balance, data)
    steps_an_epoch = -(-epoch_size(len(fold.train.positions), groups) // train.global_batch)
    total_steps = train.epochs * steps_an_epoch

    saved = checkpoint.newest(trial, world)
    if world.is_main:
        for sentence in saved.damaged:
            print(sentence, flush=True)
        checkpoint.adopt_best(attempt, saved)
    state, seconds_before = saved.state, saved.state.seconds
    model = build(settings.model, len(data.classes), mix(seed, 0x57E1))
    samples = model.front.costs(np.minimum(data.index.num_samples, max_samples or data.index.num_samples))
    cut = Cut(world.size, round(train.budget_seconds * RATE), train.accumulation, model.front.padded)
    base = FrozenBase.of(model)
    if saved.tensors is not None:
        base.check(saved.tensors.base)
        base.load(model, saved.tensors.model)
    ranks = strategy.build(model, train, world, saved.tensors)
    average = WeightAverage(ranks.module, train.average, saved.tensors.average if saved.tensors else {})
    progress = Progress(attempt, saved.attempt, state, total_steps, train.epochs, active=world.is_main)

    train_clips, most = len(fold.train.positions), settings.data.max_damaged
    damaged = DamagedClips(attempt, saved.attempt, state, data.index, train_clips, most, active=world.is_main)

    with _source(settings, data, weights, world) as source, progress, checkpoint.Writer(trial, attempt) as writer:
        pace = Pace()
        last_save, last_saved, save_s = time.monotonic(), state, 0.0

        def score(forward: Forward, positions: np.ndarray) -> np.ndarray:
            return predict(forward, source, positions, samples, cut, len(data.classes), world)

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

        def check() -> None:
            """Before and after steps: is it time to stop, or to save?"""
            watchdog.beat()
            reason = stop.reason(save_s + writer.seconds)
            due = time.monotonic() - last_save > train.checkpoint_minutes * 60
            # Rank 0 alone looks at the clock and at the disk: what it sees holds for all.
            stopping, superseded, saving = world.any(
                reason is not None, world.is_main and attempt.is_superseded, world.is_main and due
            )
            if superseded:
                raise Superseded(f"{trial.trial}: a newer attempt than this one, {attempt.number}, has begun; this one ends")
            if (stopping or saving) and state != last_saved:
                save()
            if stopping:
                writer.wait()
                progress.tell("stopped", state)
                world.barrier()  # the first rank to leave has the others ended, and rank 0 may still be writing
                raise Stopped(f"{trial.trial} stopped after step {state.step}, saved ({reason or 'another rank was asked to'})")

        check()  # it may have been asked to stop while it started
        while state.epoch < train.epochs and (train.patience is None or state.stale_epochs < train.patience):
            # Train on what is left of this epoch.
            ranks.training(True)
            steps = epoch_steps(fold.train.positions, seed, state.epoch, train.global_batch, groups)
            steps = steps[state.step - state.epoch * steps_an_epoch :]
            if pace.data is None:
                some = step_micro_batches(steps[:_PROBED], samples, cut, world.rank)
                pace.probe(source, [micro for step in some for micro in step])
            micro_batches = step_micro_batches(steps, samples, cut, world.rank)
            for step, batches in zip(steps, pace.steps(_grouped(source, micro_batches)), strict=True):
                clips = step.positions
                step_weight = float(weights[clips].sum())
                seen = torch.zeros(2, len(clips), device=world.device)  # each clip's loss, and what is wrong with it
                for turn, batch in enumerate(batches, start=1):
                    torch.manual_seed(mix(seed, state.step, batch.number))  # dropout of this micro-batch, on whatever rank
                    outputs = ranks.forward(batch.samples.to(world.device), batch.offsets, last=turn == len(batches))
                    clip_loss = clip_losses(outputs, batch.targets)
                    wrong, batch_weights = batch.damaged.to(world.device), batch.weights.to(world.device)
                    ranks.backward((clip_loss * batch_weights).sum() / step_weight)
                    if len(batch.rows):  # else a filler
                        rows = torch.from_numpy(batch.rows).to(world.device)
                        seen[:, rows] = torch.stack([clip_loss.detach().masked_fill(wrong > 0, 0), wrong.to(seen)])
                losses, causes = world.sum(seen)  # every rank sees every clip's loss, added up in one order
                _refuse_non_finite(losses, clips, data, state)
                lr = learning_rate(state.step, total_steps, train)
                grad_norm = ranks.step(lr)
                if not math.isfinite(grad_norm) and train.precision != "fp16":  # whose scaler skips such a step by itself
                    _refuse_non_finite(torch.full_like(losses, grad_norm), clips, data, state, "gradient")
                step_loss = float((losses.double().cpu() * torch.from_numpy(weights[clips])).sum())
                state = state.after_step(step_loss, step_weight)
                average.update(state.step)
                progress.step(state, step_loss / step_weight, lr, grad_norm)
                damaged.add(clips, causes.cpu().numpy(), state)
                if world.is_main and (said := pace.news(world.size)):
                    print(said, flush=True)
                    progress.speeds(pace)

                check()

            # Score the dev part; keep the weights if they are the best so far.
            ranks.training(False)
            with average.in_place(world):
                logits = score(ranks.forward, fold.dev.positions)
            dev_uar, dev_loss = _score(logits, data.targets[fold.dev.positions], len(data.classes))
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
        model = build(settings.model, len(data.classes), mix(seed, 0x57E1))
        base.load(model, checkpoint.load_weights(attempt.best(state.best_epoch)))
        model.to(world.device).eval()
        found: list[Prediction] = []
        for part, positions in (("dev", fold.dev.positions), ("test", fold.test.positions)):
            with autocast(train, world.device):
                found += _predictions(part, positions, score(model, positions), data)
        if world.is_main:
            state = replace(state, seconds=seconds_before + time.monotonic() - began)
            _complete(trial, attempt, state, found, {"ranks": world.size, "strategy": train.strategy})
        progress.tell("done", state)


def _complete(
    trial: TrialDir, attempt: AttemptDir, state: TrainState, found: list[Prediction], how: Mapping[str, int | str]
) -> None:
    """Write the predictions, then the marker, and drop what is only for going on. Raises Superseded if a marker is there."""
    predictions.write(attempt.predictions, found)
    marker = {
        "attempt": attempt.number,
        "weights": attempt.best(state.best_epoch).relative_to(trial.path).as_posix(),
        "best_epoch": state.best_epoch,
        "best_dev_uar": state.best_uar,
        "epochs": state.epoch,
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        **how,
    }
    if not write_json_once(trial.done, marker):
        raise Superseded(f"{trial.trial} was completed by another attempt; attempt {attempt.number} ends")
    checkpoint.clear(trial, attempt, state.best_epoch)


def _source(settings: Settings, data: TrialData, weights: np.ndarray, world: World) -> BatchSource:
    told = settings.data
    return BatchSource(
        data.index,
        data.targets,
        weights,
        copies=data.roots,
        max_samples=_max_samples(settings),
        augment=told.augment,
        workers=default_workers(bool(told.augment), world.local_size) if told.workers is None else told.workers,
        window_bytes=round(told.read_ahead_mb * 1e6),
    )


def _max_samples(settings: Settings) -> int | None:
    return None if settings.data.max_seconds is None else round(settings.data.max_seconds * RATE)


def _groups(balance: str, data: TrialData) -> np.ndarray | None:
    """What counts alike in an epoch: the group of each training clip, int64 (num_clips,)."""
    positions = data.fold.train.positions
    if balance == "none":
        return None
    if balance == "class":
        classes: np.ndarray = data.targets[positions]
        return classes
    words = data.index.metadata.column(balance)[positions]
    corpora = data.index.metadata.corpus[positions]  # speakers are unique only with their corpus
    names = np.array([f"{corpus}/{word}" for corpus, word in zip(corpora, words, strict=True)])
    groups: np.ndarray = np.unique(names, return_inverse=True)[1]
    return groups


def _grouped(source: BatchSource, steps: Iterable[list[MicroBatch]]) -> Iterator[list[Batch]]:
    """The batches of each step, decoded ahead across the border between steps, which are cut up only as they come near."""
    sizes: deque[int] = deque()

    def micros() -> Iterator[MicroBatch]:
        for step in steps:
            sizes.append(len(step))
            yield from step

    batches = source.ahead(micros(), training=True)
    for first in batches:
        yield [first, *islice(batches, sizes.popleft() - 1)]


def _refuse_non_finite(values: Tensor, clips: np.ndarray, data: TrialData, state: TrainState, what: str = "loss") -> None:
    """Nothing of such a step is ever saved. `values`: one for each of `clips`."""
    if bool(torch.isfinite(values).all()):
        return
    bad = clips[~torch.isfinite(values).cpu().numpy()]
    when = f"step {state.step} (epoch {state.epoch})"
    names = listed([data.index.metadata.utterance_id[position] for position in bad])
    raise UserError(
        f"the {what} is not finite at {when}, on {len(bad)} of its {len(clips)} clips: {names}. "
        "Nothing of this step was saved. Lower train.lr, use train.precision=fp32, or look at these clips."
    )


def _score(logits: np.ndarray, targets: np.ndarray, num_classes: int) -> tuple[float, float]:
    """UAR and mean cross-entropy of a part."""
    score = float(uar(confusion_matrix(targets, logits.argmax(axis=1), num_classes)))
    return score, float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)))


def _predictions(part: str, positions: np.ndarray, logits: np.ndarray, data: TrialData) -> list[Prediction]:
    metadata, classes = data.index.metadata, data.classes
    probabilities = torch.from_numpy(logits).double().softmax(dim=1).tolist()
    return [
        Prediction(
            corpus=metadata.corpus[position],
            utterance_id=metadata.utterance_id[position],
            speaker=metadata.speaker[position],
            part=part,
            truth=classes[data.targets[position]],
            predicted=classes[row.argmax()],
            probabilities={name: round(p, 6) for name, p in zip(classes, probability, strict=True)},
        )
        for position, row, probability in zip(positions, logits, probabilities, strict=True)
    ]
