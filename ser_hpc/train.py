"""`python -m ser_hpc.train --run-dir RUN --fold K [--seed S]`: one trial; what every job runs, on every rank.

Start it alone, under torchrun, or under srun with one task per GPU; it finds its ranks from the environment. Run again, it goes
on from the newest checkpoint; a finished trial is left as it is.

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
from collections.abc import Callable, Sequence
from contextlib import suppress
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
        help="instead of fold and seed: the N-th trial of the plan, from 0, or SEED:FOLD",
    )
    parser.add_argument("--side-by-side", action="store_true", help="the trials share this one task and its GPUs")
    parser.add_argument("--seed", type=int, help="default: the run's first seed")
    return parser


def _run(run: RunDir, chosen: Sequence[Trial], *, side_by_side: bool) -> int:
    if len(chosen) > 1 and not side_by_side:
        raise UserError("several trials need --side-by-side")
    for trial in chosen:
        if run.trial(trial).is_done:
            print(f"{trial} is done already: {run.trial(trial).path}")
    todo = [trial for trial in chosen if not run.trial(trial).is_done]
    if side_by_side:
        return _side_by_side(run, todo)
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
    """Run several small trials in one job: its one task starts their ranks, as the launcher does on a machine without Slurm."""
    from ser_hpc.config.load import load_run_settings
    from ser_hpc.launchers.detect import describe_machine
    from ser_hpc.launchers.local import run_trials

    if not trials:
        return 0
    cluster = load_run_settings(run.settings).cluster
    shared, most = describe_machine(cluster, num_trials=len(trials)), cluster.max_starts_without_progress
    print(shared.description(), flush=True)
    try:
        codes = run_trials(run, trials, shared, lambda jobs: None, alone=False, max_starts=most)
    except KeyboardInterrupt:
        return STOPPED
    return next((code for code in (CANNOT_GO_ON, SUPERSEDED) if code in codes.values()), 0)


def train(run: RunDir, trial: Trial) -> int:
    """Run one trial on this rank, and record how it ended; return the exit code. Raises UserError if the trial cannot go on."""
    place = run.trial(trial)
    mine: list[AttemptDir] = []  # the attempt, once this rank knows its number; an older or newer one's files are not ours
    with StopFlag(stop_time(os.environ)) as stop:  # from the very start: importing torch takes long enough to be asked to stop
        try:
            _train(run, place, rank_from_env(os.environ), mine, stop)
        except BaseException as error:
            error = _as_final(error, run)
            outcome, code = _classify_end(error, mine)
            for attempt in mine:
                kind = "UserError" if isinstance(error, UserError) else type(error).__name__
                shared = isinstance(error, SharedError) or _is_full_disk(error)
                attempts.end_attempt(
                    attempt, outcome, None if isinstance(error, Stopped) else f"{kind}: {error}", shared=shared
                )
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


def _train(run: RunDir, place: TrialDir, rank: Rank, mine: list[AttemptDir], stop: StopFlag) -> None:
    if rank.is_main:
        mine.append(attempts.claim_attempt(place, rank))
        if (message := unconfirmed_ranks(os.environ, rank)) is not None:
            print(message, flush=True)
    prepare_allocator(os.environ)
    message = cores.limit_threads(os.environ, cores.rank_share(os.environ, rank.local_size))
    if rank.is_main and message is not None:
        print(message, flush=True)
    from ser_hpc.engine.distributed import world  # torch takes seconds to import: after the mistakes that need none
    from ser_hpc.engine.fault.watchdog import Watchdog
    from ser_hpc.engine.trial_data import TrialData
    from ser_hpc.run.experiment import reopen_experiment

    with shared_by_all_trials():
        experiment = reopen_experiment(run)
        _check_node(experiment, run, rank)
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
    data = TrialData(experiment.index, experiment.tasks, fold, staged)
    with Watchdog(
        limit.total_seconds(), lambda: attempts.end_attempt(attempt, "hung", "no step was made any more"), FAILED
    ) as watchdog:
        _trainer(settings)(place, attempt, settings, data, ranks, stop, watchdog)
        if ranks.is_main:
            attempts.end_attempt(attempt, "done")
        ranks.shut_down()


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
        a_checkpoint = 3 * 4 * estimate_cost(experiment, on_gpu=True).parameters  # weights and two moments, fp32
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
