"""Fit a linear probe of a frozen encoder (`model.head.kind=probe`): what takes the loop's place in such a trial.

Every rank makes its share of the clips' statistics, once a run (feature_cache.py); then rank 0 fits, and the others wait. For
each L2 penalty of the settings that is one logistic regression by scikit-learn on the standardised training part; the dev part
chooses the penalty, the test part is touched once. Nothing is drawn at random, so all seeds give the same. A fit takes seconds:
there are no checkpoints, a start begins with the first penalty and ends in the same bits.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ser_hpc.config.heads import ProbeSettings
from ser_hpc.config.settings import EncoderModel, Settings
from ser_hpc.config.tasks import MAIN
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.engine import feature_cache, finish, gpu, precision
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.fault import checkpoint
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.fault.corrupt_clips import CorruptClips
from ser_hpc.engine.fault.preemption import StopFlag, Stopped, Superseded
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.frozen_encoder import FrozenEncoder, LoadedEncoder, PooledFeatures
from ser_hpc.engine.probe_normalization import feature_scale, normalize_features
from ser_hpc.engine.progress import Progress
from ser_hpc.engine.trackers import build_trackers
from ser_hpc.engine.trial_data import TrialData, make_batch_source
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.heads.linear_probe import LinearProbe
from ser_hpc.run.attempt import describe_attempt as describe
from ser_hpc.run.run_dir import AttemptDir, RunDir, TrialDir
from ser_hpc.shards.read import CorruptionCause, corruption_error
from ser_hpc.tasks.task import ClipTargets

_MOST_ITERATIONS = 1000
_NEVER = -100.0  # the logit of a class that the training part has no clip of


@gpu.explain_missing_kernels()
def train_trial(
    trial: TrialDir,
    attempt: AttemptDir,
    settings: Settings,
    data: TrialData,
    world: World,
    stop: StopFlag,
    watchdog: Watchdog,
    frozen: FrozenEncoder,
) -> None:
    """Fit, choose the penalty on dev, predict dev and test, write the marker.

    `frozen`: what the trials of this process share.

    Raises Stopped when asked to stop, Superseded when a newer attempt of the trial is there, UserError as the loop does.
    """
    began = awake_s()
    settings = precision.choose_precision(settings, RunDir(trial.path.parents[1]), world)
    gpu.set_deterministic(settings.train.deterministic)
    train, fold = settings.train, data.fold
    if world.is_main:
        describe(attempt, strategy=train.strategy, precision=train.precision)
    build = partial(build_classifier, settings.model, len(data.classes), seed=0)
    encoder = frozen.load(settings, 0, build)
    model, base, targets = encoder.model, encoder.base, ClipTargets.of_tasks(data.tasks, fold.train.positions)
    clips = make_batch_source(settings, data, targets, world)
    states = feature_cache.pool_features(encoder, clips, trial, settings, data, world, stop, watchdog)
    penalties, state = _penalties(settings), TrainState()
    many = len(penalties)
    trackers = build_trackers(settings.trackers if world.is_main else (), attempt.path, str(trial.trial), 0)
    with Progress(attempt, None, state, many, many, trackers, active=world.is_main) as progress:
        corrupt = CorruptClips(
            attempt, None, state, data.index, len(fold.train.positions), settings.data.max_corrupt, active=world.is_main
        )
        corrupt.add(fold.train.positions, _causes(states, fold.train.positions), state)
        _refuse_damaged(states, data)
        fitting = None
        if world.is_main:
            fitting = _Fit(encoder, normalize_features(encoder, states, settings, data), data, targets.weights[MAIN])
        for number, penalty in enumerate(penalties):
            _agree(trial, attempt, world, stop)
            watchdog.beat()
            if fitting is not None:
                train_loss, dev = fitting.fit(penalty)
                state = replace(state, step=number + 1, seconds=awake_s() - began).after_evaluation(dev.chosen, dev.uar, 1)
                if state.best_epoch == number:
                    best = checkpoint.save_weights(attempt.best(number), base.without(model.state_dict()))
                    state = replace(state, best_sha256=best)
                    fitting.keep()
                progress.evaluation(state, train_loss, dev.uar, dev.loss, dev.others)
        _agree(trial, attempt, world, stop)
        if fitting is not None:
            print(f"{trial.trial}: L2 {penalties[state.best_epoch]:g} of {many}, dev UAR {state.best_uar:.3f}", flush=True)
            found = [
                prediction
                for part, positions in (("dev", fold.dev.positions), ("test", fold.test.positions))
                for prediction in finish.predictions_of(part, positions, {MAIN: fitting.best_logits(positions)}, data)
            ]
            conditions = {"ranks": world.size, "strategy": train.strategy, "precision": train.precision}
            finish.write_done(trial, attempt, replace(state, seconds=awake_s() - began), found, conditions)
        progress.write("done", state)


class _Fit:
    """The model's probe, fitted to the training part by one penalty after another. A damaged clip takes no part.

    What was fitted to the same clips before in this process, for another seed, is taken over: it would be the same.
    """

    def __init__(self, encoder: LoadedEncoder, states: PooledFeatures, data: TrialData, weights: np.ndarray) -> None:
        assert isinstance(encoder.model.head, LinearProbe)
        self._probe, self._fits, self._states, self._data = encoder.model.head, encoder.fits, states, data
        positions = data.fold.train.positions
        positions = positions[_causes(states, positions) == 0]
        self._targets, self._weights, self._positions = (
            data.targets[positions],
            weights[positions].astype(np.float64),
            positions,
        )
        rows = self._rows(positions).astype(np.float64)
        mean, scale = rows.mean(axis=0), feature_scale(rows, self._probe.width // self._probe.num_statistics)
        self._features = (rows - mean) / scale
        self._probe.mean.copy_(torch.from_numpy(mean))
        self._probe.scale.copy_(torch.from_numpy(scale))
        self._best = {name: tensor.clone() for name, tensor in self._probe.state_dict().items()}

    def fit(self, penalty: float) -> tuple[float, finish.PartScores]:
        """Fit, and return the mean training loss and the dev scores."""
        key = (self._positions.tobytes(), penalty)
        if key not in self._fits:
            classes = len(self._data.classes)
            self._fits[key] = fit_logistic_regression(self._features, self._targets, self._weights, penalty, classes)
        weight, bias = self._fits[key]
        with torch.no_grad():
            self._probe.classifier.weight.copy_(torch.from_numpy(weight))
            self._probe.classifier.bias.copy_(torch.from_numpy(bias))
        losses = torch.nn.functional.cross_entropy(
            torch.from_numpy(self._logits(self._positions)), torch.from_numpy(self._targets), reduction="none"
        )
        dev = self._data.fold.dev.positions
        scores = finish.score_part({MAIN: self._logits(dev)}, dev, self._data)
        return float(np.average(losses.numpy(), weights=self._weights)), scores

    def keep(self) -> None:
        """Keep this fit: it is the best so far."""
        self._best = {name: tensor.clone() for name, tensor in self._probe.state_dict().items()}

    def best_logits(self, positions: np.ndarray) -> np.ndarray:
        """Compute the logits of clips by the best fit, float32 (clips, classes)."""
        self._probe.load_state_dict(self._best)
        return self._logits(positions)

    @torch.no_grad()
    def _logits(self, positions: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._probe.classify(torch.from_numpy(self._rows(positions))).numpy()
        return logits

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self._states.means[np.searchsorted(self._states.positions, positions)]
        return rows


def fit_logistic_regression(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, penalty: float, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the weighted mean of the cross-entropy plus `penalty` / 2 times the squared norm of the weights (not of biases).

    `features` (clips, width) float64, `targets` and `weights` (clips,). Returns (num_classes, width) and (num_classes,); a
    class without clips is never predicted.
    """
    solver = LogisticRegression(C=1 / (penalty * weights.sum()), max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(features, targets, sample_weight=weights)
    if solver.n_iter_.max() >= _MOST_ITERATIONS:
        print(f"the probe with L2 {penalty:g} is not quite at its optimum after {_MOST_ITERATIONS} iterations", flush=True)
    known, coefficients, intercepts = solver.classes_, solver.coef_, solver.intercept_
    if len(known) == 2:  # given as the second one's logit alone
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([[0.0], intercepts])
    weight, bias = np.zeros((num_classes, features.shape[1])), np.full(num_classes, _NEVER)
    weight[known], bias[known] = coefficients, intercepts
    return weight, bias


def _penalties(settings: Settings) -> list[float]:
    """Return the penalties, strongest first: of equally good ones the simplest fit is kept."""
    assert isinstance(settings.model, EncoderModel)
    head = settings.model.head
    assert isinstance(head, ProbeSettings)
    return sorted(set(head.l2), reverse=True)


def _causes(states: PooledFeatures, positions: np.ndarray) -> np.ndarray:
    causes: np.ndarray = states.causes[np.searchsorted(states.positions, positions)]
    return causes


def _refuse_damaged(states: PooledFeatures, data: TrialData) -> None:
    """Raise CorruptClipError for a damaged clip of dev or test."""
    for part in (data.fold.dev, data.fold.test):
        causes = _causes(states, part.positions)
        for i in np.flatnonzero(causes):
            raise corruption_error(data.index, int(part.positions[i]), CorruptionCause(causes[i]))


def _agree(trial: TrialDir, attempt: AttemptDir, world: World, stop: StopFlag) -> None:
    """Go on together. Raises Stopped or Superseded on all ranks if one is to."""
    reason = stop.reason()
    stopping, superseded = world.any_rank(reason is not None, world.is_main and attempt.is_superseded)
    if superseded:
        raise Superseded(f"{trial.trial}: a newer attempt than this, {attempt.number}, has begun; this one ends")
    if stopping:
        raise Stopped(f"{trial.trial} stopped while its probe was fitted ({reason or 'another rank was asked to'})")
