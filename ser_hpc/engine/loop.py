"""Train one trial, from its plan to its predictions, in one function to be read from top to bottom; `ser_hpc.train` calls it.

Every rank runs it alike. What a step learns from, its dropout and its learning rate are functions of (seed, step) alone, so
stopping at any step and calling `train_trial` again, on as many ranks, ends in the same weights as never having stopped.
Releasing more of the encoder (train.freeze_epochs) is such a stop. The test part is touched once, after the dev part alone has
chosen the weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from safetensors.torch import load_file

from ser_hpc.config.settings import Settings
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.data.batches import Source, group_by_step
from ser_hpc.data.mixup import pair_clips
from ser_hpc.data.sampler import epoch_size, epoch_steps, reduce_budget, step_micro_batches, weights_seed
from ser_hpc.engine import feature_cache, finish, gpu, precision
from ser_hpc.engine.distributed.build import build_strategy
from ser_hpc.engine.distributed.ddp import autocast
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.ema import WeightEma
from ser_hpc.engine.evaluation import predict
from ser_hpc.engine.fault import checkpoint
from ser_hpc.engine.fault.corrupt_clips import CorruptClips
from ser_hpc.engine.fault.preemption import StopFlag
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.feature_cache import FeatureSource
from ser_hpc.engine.frozen_encoder import FrozenEncoder
from ser_hpc.engine.frozen_params import FrozenParameters
from ser_hpc.engine.memory import search
from ser_hpc.engine.objective import Objective
from ser_hpc.engine.optim import learning_rate
from ser_hpc.engine.progress import Progress
from ser_hpc.engine.reached import ReachedParameters
from ser_hpc.engine.schedule import Schedule
from ser_hpc.engine.step import accumulate_gradients
from ser_hpc.engine.step_metrics import StepMetrics
from ser_hpc.engine.supervisor import Supervisor
from ser_hpc.engine.torch_compile import compile_layers
from ser_hpc.engine.trackers import build_trackers
from ser_hpc.engine.trial_data import TrialData, balance_groups, lengths, make_batch_source, shard_order
from ser_hpc.engine.unfreeze import Unfreezing, go_on_after_releases
from ser_hpc.inference.trials import initial_weights
from ser_hpc.models.classifier import build_for_tasks
from ser_hpc.models.norms import RunningStatistics
from ser_hpc.run.attempt import describe_attempt as describe
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import AttemptDir, RunDir, TrialDir
from ser_hpc.shards import RATE
from ser_hpc.tasks.task import ClipTargets

_PROBED = 64  # steps whose clips the data side is measured on


@gpu.explain_missing_kernels()
@go_on_after_releases
def train_trial(
    trial: TrialDir,
    attempt: AttemptDir,
    settings: Settings,
    data: TrialData,
    world: World,
    stop: StopFlag,
    watchdog: Watchdog,
    frozen: FrozenEncoder,
) -> bool:
    """Train, choose the weights on dev, predict dev and test, write the marker. False: it is to be called again, for a release.

    `frozen`: what the trials of this process share, where their encoder is frozen.

    Raises Stopped when asked to stop (all is saved), Superseded when a newer attempt of the trial is there, UserError when the
    loss is not finite, the disk is full, or a single clip takes more memory than there is.
    """
    # Set up: the data.
    began = awake_s()
    settings = precision.choose_precision(settings, RunDir(trial.path.parents[1]), world)
    gpu.set_deterministic(settings.train.deterministic)
    train, seed, fold, tasks = settings.train, trial.trial.seed, data.fold, data.tasks
    targets, groups = ClipTargets.of_tasks(tasks, fold.train.positions), balance_groups(settings.data.balance, data)
    objective, order = Objective(tasks, targets), shard_order(settings, data)
    schedule = Schedule.of_settings(train, epoch_size(len(fold.train.positions), groups))
    total_steps = schedule.total_steps
    saved = checkpoint.restore(trial, attempt, world)

    # Set up: the model, and how ranks share it.
    initial, width = initial_weights(trial.run, settings, trial.trial), None
    new_model = partial(build_for_tasks, settings.model, tasks, weights_seed(seed), initial=initial)
    encoder = frozen.load(settings, seed, new_model) if settings.uses_feature_cache else None
    model = encoder.model if encoder else new_model()
    if world.is_main and initial is not None:
        print(f"starting from {initial.source}:", *initial.told, sep="\n  ", flush=True)
    base = encoder.base if encoder else FrozenParameters.from_model(model)
    if saved.tensors is not None:
        base.check(saved.tensors.base)
    decoded = make_batch_source(settings, data, targets, world)
    source: Source = decoded
    if encoder is not None:
        states = feature_cache.pool_features(encoder, decoded, trial, settings, data, world, stop, watchdog)
        source, width = FeatureSource(states, data.index, targets, settings.data.mixup), states.means.shape[1]
        model = new_model(pooled_width=width)
    samples = model.frontend.costs(lengths(settings, data))
    budget = search.find_budget(model, settings, samples[fold.train.positions], world, saved.state.budget)
    cut = budget.batch_spec(world.size, train.accumulation, model.frontend)
    if saved.tensors is not None:
        base.load(model, saved.tensors.model)
    if train.compile:
        compile_layers(model.encoder)
    unfreezing, epoch = Unfreezing(model, train), schedule.epoch(saved.state.step)
    if (held := unfreezing.freeze(model, epoch)) and world.is_main:
        print(held, flush=True)
    strategy = build_strategy(model, train, world, saved.tensors)
    batch_norms = RunningStatistics(strategy.module, train.global_batch)
    reached = ReachedParameters(strategy.module)
    ema = WeightEma(strategy.module, train.ema_decay, saved.tensors.ema if saved.tensors else {})

    # Set up: what is recorded.
    if world.is_main:
        describe(attempt, strategy=train.strategy, precision=train.precision, budget_s=round(budget.samples / RATE, 3))
    state, limit = replace(saved.state, budget=budget), settings.data.max_corrupt
    trackers = build_trackers(settings.trackers if world.is_main else (), attempt.path, str(trial.trial), state.step)
    progress = Progress(
        attempt, saved.attempt, state, total_steps, train.epochs, trackers, train.eval_steps, active=world.is_main
    )
    corrupt = CorruptClips(attempt, saved.attempt, state, data.index, len(fold.train.positions), limit, active=world.is_main)
    metrics = StepMetrics(state, data, objective, schedule, train.precision == "fp16", progress, corrupt)
    with source, progress, checkpoint.Writer(trial, attempt) as writer:
        supervisor = Supervisor(
            trial=trial, attempt=attempt, train=train, world=world, stop=stop, watchdog=watchdog, began=began,
            strategy=strategy, ema=ema, base=base, metrics=metrics, writer=writer,
        )  # fmt: skip
        supervisor.obey(supervisor.agree())  # it may have been asked to stop while it started
        patience = train.patience or schedule.evaluations
        while metrics.state.evaluation < schedule.evaluations and metrics.state.stale_evaluations < patience:
            # Release: more of the encoder is trained from this epoch on.
            before, epoch = epoch, schedule.epoch(metrics.state.step)
            if unfreezing.releases(before, epoch):
                supervisor.release()
                return False

            # Steps: what is left of this epoch, or until dev is evaluated.
            strategy.train_mode(True)
            steps = epoch_steps(fold.train.positions, seed, epoch, train.global_batch, groups, order)
            until = schedule.next_stop(metrics.state.step, metrics.state.evaluation)
            steps = steps[metrics.state.step - epoch * schedule.steps_per_epoch : until - epoch * schedule.steps_per_epoch]
            steps = pair_clips(steps, settings.data.mixup, seed, metrics.state.step)
            metrics.measure_data_once(source, step_micro_batches(steps[:_PROBED], samples, cut, world.rank))
            batches_of_steps = group_by_step(source, step_micro_batches(steps, samples, cut, world.rank))
            clips_and_batches = zip(steps, batches_of_steps, strict=True)
            for number, (step, batches) in enumerate(clips_and_batches, start=metrics.state.step):
                # One step.
                metrics.begin_step(number, batches)
                losses = accumulate_gradients(strategy, objective, batches, step, (seed, number), world, batch_norms)
                decision = supervisor.agree(out_of_memory=losses is None)
                if losses is None or decision.out_of_memory:
                    strategy.discard_step()
                    cut = reduce_budget(cut, step.positions, samples[step.positions])
                    supervisor.reduce_budget(cut.budget_samples, number)
                    break
                reached.check(world)
                losses, lr = world.sum_over_ranks(losses), learning_rate(number, total_steps, train)
                grad_norm = strategy.step(lr)
                batch_norms.update(len(step), world.sum_over_ranks)
                ema.update(number + 1)
                metrics.end_step(step, lr, losses, grad_norm, world)
                supervisor.obey(decision)
            metrics.read(all=True)
            if metrics.state.step < schedule.evaluation_step(metrics.state.evaluation):
                continue  # the next epoch; or memory ran out: the same step is made again, cut smaller

            # Evaluation: with each epoch, or every so many steps.
            strategy.train_mode(False)
            with ema.in_place(world):
                outputs = predict(strategy.forward, source, fold.dev.positions, samples, cut, data.widths, world, order)
            supervisor.end_evaluation(finish.score_part(outputs, fold.dev.positions, data, train.select_by))

        # Test: once, with the epoch that dev chose; on a plain copy, whatever the strategy was.
        writer.wait()
        strategy.close()
        world.barrier()
        progress.write("predicting", metrics.state)
        model = new_model(pooled_width=width)
        base.load(model, load_file(attempt.best(metrics.state.best_evaluation)))
        model.to(world.device).eval()
        found: list[Prediction] = []
        for part, positions in (("dev", fold.dev.positions), ("test", fold.test.positions)):
            with autocast(train, world.device):
                outputs = predict(model, source, positions, samples, cut, data.widths, world, order)
            found += finish.predictions_of(part, positions, outputs, data)
        if world.is_main:
            conditions = {"ranks": world.size, "strategy": train.strategy, "precision": train.precision}
            finish.write_done(trial, attempt, replace(metrics.state, seconds=supervisor.seconds), found, conditions)
        progress.write("done", metrics.state)
    return True
