"""`python -m ser_hpc.train --run-dir RUN --fold K [--seed S]`: one trial, or several; what every job runs, on every rank.

Start it alone, under torchrun, or under srun with one task per GPU; it finds its ranks from the environment. Run again, it goes
on from the newest checkpoint; a finished trial is left as it is. Several trials train one after another, where each is a head
on a frozen encoder's features: what they have in common is loaded once, and each ends in the same bits as alone.

exit codes:
  0   done
  2   cannot go on: a mistake in settings or data, a full disk
  3   superseded: a newer attempt of the trial has begun elsewhere
  75  asked to stop, state saved: start it again to go on
  1, or a signal: failed in a way that another attempt may get over; the launchers start it again, until several starts in a
      row have come no further (cluster.max_starts_without_progress)
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ser_hpc.core import cli, cores
from ser_hpc.core.atomic_io import DISK_FULL_ERRNOS
from ser_hpc.core.errors import SharedError, UserError, listed, shared_by_all_trials
from ser_hpc.engine.fault.preemption import StopFlag, Stopped, Superseded, stop_time
from ser_hpc.run import attempt as attempts
from ser_hpc.run import start_marks
from ser_hpc.run.attempt import CANNOT_GO_ON, FAILED, STOPPED, SUPERSEDED
from ser_hpc.run.rank import Rank, prepare_allocator, rank_from_env, unconfirmed_ranks
from ser_hpc.run.run_dir import AttemptDir, RunDir, Trial, TrialDir

if TYPE_CHECKING:
    from ser_hpc.config.settings import Settings
    from ser_hpc.engine.frozen_encoder import FrozenEncoder
    from ser_hpc.protocols.folds import Fold
    from ser_hpc.run.experiment import Experiment
    from ser_hpc.shards.storage import Location

_STAGING_S = 1800.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials; tell a final outcome to the batch script too."""
    start_marks.mark_reached()
    with start_marks.mistakes_are_final():
        options = _parser().parse_args(argv)
        run = RunDir(options.run_dir)
        chosen = _chosen(run, options)
        code = _run(run, chosen, side_by_side=options.side_by_side)
    # A rank that leaves early does not know how the main one will end.
    if code in (CANNOT_GO_ON, SUPERSEDED) or (code == 0 and all(run.trial(trial).is_done for trial in chosen)):
        start_marks.write_final_line(code)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ser_hpc.train", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("--run-dir", type=Path, required=True, help="the run directory that the launcher made")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--fold", type=int)
    which.add_argument(
        "--trial",
        nargs="+",
        metavar="N",
        help="instead of fold and seed: the N-th trial of the plan, from 0, or SEED:FOLD; of several, one after another",
    )
    parser.add_argument(
        "--side-by-side",
        action="store_true",
        help="the trials share this one task and its GPUs, as they would share a machine without Slurm",
    )
    parser.add_argument("--seed", type=int, help="default: the run's first seed")
    return parser


def _run(run: RunDir, chosen: Sequence[Trial], *, side_by_side: bool) -> int:
    for trial in chosen:
        if run.trial(trial).is_done:
            print(f"{trial} is done already: {run.trial(trial).path}")
    todo = [trial for trial in chosen if not run.trial(trial).is_done]
    if side_by_side:
        return _side_by_side(run, todo)
    if len(todo) > 1:
        return train_in_turn(run, todo)
    return train(run, todo[0]) if todo else 0


def _chosen(run: RunDir, options: argparse.Namespace) -> list[Trial]:
    trials = run.trials()
    if options.trial is not None:
        known = {str(number): trial for number, trial in enumerate(trials)}
        known |= {f"{trial.seed}:{trial.fold}": trial for trial in trials}
        if unknown := [name for name in options.trial if name not in known]:
            raise UserError(f"--trial {unknown[0]}: {run.path} has the trials 0 to {len(trials) - 1}, or SEED:FOLD")
        return [known[name] for name in options.trial]
    trial = Trial(trials[0].seed if options.seed is None else options.seed, options.fold)
    if trial not in trials:
        raise UserError(f"{run.path} has no {trial}; it has {listed(trials, 20)}")
    return [trial]


def _side_by_side(run: RunDir, trials: Sequence[Trial]) -> int:
    """Run several small trials in one job: its one task starts their ranks, as the launcher does on a machine without Slurm;
    heads on a frozen encoder's features one after another in each of its slots, others all at the same time."""
    from ser_hpc.config.load import load_run_settings
    from ser_hpc.launchers.detect import describe_machine
    from ser_hpc.launchers.local import run_trials

    if not trials:
        return 0
    settings = load_run_settings(run.settings)
    in_turn, most = settings.trains_in_turn, settings.cluster.max_starts_without_progress
    per_job = settings.trials_per_job if in_turn else 1
    shared = describe_machine(settings.cluster, None if in_turn else len(trials))
    print(shared.description(), flush=True)
    try:
        codes = run_trials(run, trials, shared, lambda jobs: None, alone=False, per_job=per_job, max_starts=most)
    except KeyboardInterrupt:
        return STOPPED
    return _worst(codes.values())


@dataclass
class _Loaded:
    """What the trials of one process load once: their experiment, and the frozen encoder with what it made of the clips."""

    experiment: Experiment | None = None
    encoder: FrozenEncoder | None = None


def train(run: RunDir, trial: Trial) -> int:
    """Run one trial on this rank, and record how it ended; return the exit code. Raises UserError if the trial cannot go on."""
    with StopFlag(stop_time(os.environ)) as stop:  # from the very start: importing torch takes long enough to be asked to stop
        return _train_and_record(run, trial, _Loaded(), stop)


def train_in_turn(run: RunDir, trials: Sequence[Trial]) -> int:
    """Run trials on this rank, one after another; return the exit code.

    One that cannot go on leaves the others alone, unless all share its mistake; of several ranks, which may not agree on that,
    the others wait for another start. A process that is superseded in one leaves the others, too, to whoever has begun it anew.
    Raises UserError if the run's trials need a process each.
    """
    _check_in_turn(run)
    loaded, alone = _Loaded(), rank_from_env(os.environ).size == 1
    codes: list[int] = []
    with StopFlag(stop_time(os.environ)) as stop:
        for trial in trials:
            if codes and stop.reason() is not None:
                return STOPPED
            with _told_apart(run, trial):
                try:
                    code = _train_and_record(run, trial, loaded, stop)
                except UserError as error:
                    print(f"error: {error}", file=sys.stderr, flush=True)
                    code, alone = CANNOT_GO_ON, alone and not isinstance(error, SharedError)
                if code in (CANNOT_GO_ON, SUPERSEDED) or run.trial(trial).is_done:
                    start_marks.write_final_line(code)
            codes.append(code)
            if code in (STOPPED, SUPERSEDED) or (code and not alone):
                return code
    return _worst(codes)


def _worst(codes: Collection[int]) -> int:
    """Return the exit code of several trials."""
    return next((code for code in (CANNOT_GO_ON, SUPERSEDED) if code in codes), 0)


def _check_in_turn(run: RunDir) -> None:
    """Raise UserError if trials of this run need a process each."""
    from ser_hpc.config.load import load_run_settings

    if not load_run_settings(run.settings).trains_in_turn:
        raise UserError(
            "several trials train one after another only where each is a head on a frozen encoder's features (model.freeze="
            "encoder), by ddp, on one node, and cluster.trials_per_job is not 1: start these one by one, or add --side-by-side"
        )


@contextmanager
def _told_apart(run: RunDir, trial: Trial) -> Iterator[None]:
    """Within it, what is said of the trial goes to its own log and marks, where `launchers.local` has started the process."""
    from ser_hpc.launchers.local import log_path

    if "SER_HPC_START" not in os.environ:
        yield
        return
    log = log_path(run, trial)
    os.environ["SER_HPC_LOG"] = str(log)
    with start_marks.marks_of_trial(trial), cli.output_to(log):
        yield


def _train_and_record(run: RunDir, trial: Trial, loaded: _Loaded, stop: StopFlag) -> int:
    """Train one trial; the exit code. Raises UserError if it cannot go on."""
    mine: list[AttemptDir] = []  # the attempt, once this rank knows its number; an older or newer one's files are not ours
    try:
        _train(run, run.trial(trial), rank_from_env(os.environ), loaded, mine, stop)
    except BaseException as error:
        error = _as_final(error, run)
        outcome, code = _classify_end(error, mine)
        for attempt in mine:
            kind = "UserError" if isinstance(error, UserError) else type(error).__name__
            shared = isinstance(error, SharedError) or _is_full_disk(error)
            attempts.end_attempt(attempt, outcome, None if isinstance(error, Stopped) else f"{kind}: {error}", shared=shared)
        if isinstance(error, UserError) and code == CANNOT_GO_ON:
            raise error
        if isinstance(error, Stopped | Superseded):
            print(error, flush=True)
            return code
        if code == CANNOT_GO_ON:
            raise UserError(f"{trial}: {error}: make room there, then start it again") from error
        traceback.print_exc()
        print(f"{trial} {outcome}: {error}", file=sys.stderr, flush=True)
        # The other ranks may wait in a collective for ever: leave at once, so that the launcher ends them too.
        sys.stdout.flush()
        os._exit(code)
    return 0


def _train(run: RunDir, place: TrialDir, rank: Rank, loaded: _Loaded, mine: list[AttemptDir], stop: StopFlag) -> None:
    if rank.is_main:
        mine.append(attempts.claim_attempt(place, rank))
        if (message := unconfirmed_ranks(os.environ, rank)) is not None:
            print(message, flush=True)
    prepare_allocator(os.environ)
    if loaded.experiment is None:
        message = cores.limit_threads(os.environ, cores.rank_share(os.environ, rank.local_size))
        if rank.is_main and message is not None:
            print(message, flush=True)
    from ser_hpc.engine.distributed import world  # torch takes seconds to import: after the mistakes that need none
    from ser_hpc.engine.fault.watchdog import Watchdog
    from ser_hpc.engine.trial_data import TrialData

    experiment, encoder = _load(run, rank, loaded)
    settings, fold = experiment.settings, experiment.folds.folds[place.trial.fold]
    limit = timedelta(minutes=settings.train.hang_minutes)
    meeting = timedelta(minutes=5, seconds=_STAGING_S if settings.cluster.node_local else 0)
    with stop.at_once(partial(_leave, place.trial, mine)):
        staged = _staged(experiment, fold, rank)
        ranks = world.join_world(place.path, rank, limit + timedelta(minutes=2), meeting)
        (number,) = ranks.broadcast_numbers(mine[0].number if mine else 0)
    attempt = place.attempt(number)
    mine[:] = [attempt]
    if ranks.is_main:
        attempts.describe_attempt(attempt, device=world.device_name(ranks.device), threads=world.num_threads())
    data = TrialData(experiment.index, tuple(task.in_fold(fold.train.positions) for task in experiment.tasks), fold, staged)
    with Watchdog(
        limit.total_seconds(), lambda: attempts.end_attempt(attempt, "hung", "no step was made any more"), FAILED
    ) as watchdog:
        _trainer(settings)(place, attempt, settings, data, ranks, stop, watchdog, encoder)
        if ranks.is_main:
            attempts.end_attempt(attempt, "done")
        ranks.shut_down()


def _load(run: RunDir, rank: Rank, loaded: _Loaded) -> tuple[Experiment, FrozenEncoder]:
    """Plan the run again and check this node, and return what its trials share, once for all trials of this process."""
    from ser_hpc.engine.frozen_encoder import FrozenEncoder
    from ser_hpc.run.experiment import reopen_experiment

    if loaded.experiment is None or loaded.encoder is None:
        with shared_by_all_trials():
            loaded.experiment, loaded.encoder = reopen_experiment(run), FrozenEncoder()
            _check_node(loaded.experiment, run, rank)
    return loaded.experiment, loaded.encoder


def _trainer(settings: Settings) -> Callable[..., None]:
    """Choose what trains a trial."""
    if settings.is_probe:
        from ser_hpc.engine.probe import train_trial  # scikit-learn takes a second to import

        return train_trial
    from ser_hpc.engine import loop

    return loop.train_trial


def _leave(trial: Trial, mine: Sequence[AttemptDir], reason: str) -> None:
    """End this rank at once, whatever it waits for: nothing is trained yet."""
    for attempt in mine:
        attempts.end_attempt(attempt, "stopped")
    print(f"{trial} stopped before training began, while ranks gathered ({reason})", flush=True)
    os._exit(STOPPED)


def _check_node(experiment: Experiment, run: RunDir, rank: Rank) -> None:
    from ser_hpc.engine.fault import node_check
    from ser_hpc.launchers.estimate import estimate_cost

    if rank.local == 0:
        a_checkpoint = 3 * 4 * estimate_cost(experiment, on_gpu=True).model.parameters  # weights and two moments, fp32
        for warning in node_check.check(experiment.settings.train.precision, run.path, a_checkpoint):
            print(warning, flush=True)


def _staged(experiment: Experiment, fold: Fold, rank: Rank) -> tuple[Location, ...]:
    """Copy the fold's shards to this node's own disk, where the cluster's profile names a folder; return the copies' roots."""
    from ser_hpc.config.cluster import expand_path
    from ser_hpc.data.staging import stage

    folder = experiment.settings.cluster.node_local
    if folder is None:
        return ()
    try:
        roots, message = stage(experiment.index, fold.positions, expand_path(folder), wait_s=_STAGING_S)
    except UserError as error:  # the variable that names the folder is not set on this node
        roots, message = (), f"shards are read where they lie: {error}"
    if rank.local == 0:
        print(message, flush=True)
    return roots


def _classify_end(error: BaseException, mine: Sequence[AttemptDir]) -> tuple[str, int]:
    """Return how the attempt ended, and the exit code."""
    if isinstance(error, Superseded) or any(attempt.is_superseded for attempt in mine):
        return "superseded", SUPERSEDED  # whatever else befell it: a newer attempt may have taken its files away
    if isinstance(error, Stopped):
        return "stopped", STOPPED
    if isinstance(error, UserError) or _is_full_disk(error):
        return "failed", CANNOT_GO_ON
    lost = any(word in str(error) for word in ("gloo", "NCCL", "Connection reset", "Connection closed"))
    return "lost" if lost else "failed", FAILED


def _as_final(error: BaseException, run: RunDir) -> BaseException:
    """Return a UserError in the place of a mistake in code from outside the package, which each further start would repeat."""
    from ser_hpc.config.extension_errors import outsiders_mistake
    from ser_hpc.config.load import load_run_settings

    if isinstance(error, Exception) and not isinstance(error, UserError):
        with suppress(UserError):
            if (mistake := outsiders_mistake(error, load_run_settings(run.settings).outsiders())) is not None:
                return SharedError(mistake).with_traceback(error.__traceback__)
    return error


def _is_full_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS


if __name__ == "__main__":
    cli.run_main(main)
