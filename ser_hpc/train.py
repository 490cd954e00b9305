"""`python -m ser_hpc.train --run-dir RUN --fold K [--seed S]`: one trial; what every job runs, on every rank.

Start it alone, under torchrun, or under srun with one task per GPU; it finds its ranks from the environment. Run again, it goes
on from the newest checkpoint; a finished trial is left as it is.

exit codes:
  0   done
  2   cannot go on: a mistake in settings or data, a full disk, the same failure twice
  3   superseded: a newer attempt of the trial has begun elsewhere
  75  asked to stop, state saved: start it again to go on
  1, or a signal: failed in a way that another attempt may get over; the launchers start it again
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ser_hpc import console
from ser_hpc.engine import attempt as attempts
from ser_hpc.engine.preemption import StopFlag, Stopped, Superseded, stop_time
from ser_hpc.engine.rank import Rank, who_am_i
from ser_hpc.errors import UserError, listed
from ser_hpc.results.run_dir import AttemptDir, RunDir, Trial, TrialDir

if TYPE_CHECKING:
    from ser_hpc.cluster.plan import Experiment
    from ser_hpc.corpora.folds import Fold

_STAGING_S = 1800.0
FAILED, SUPERSEDED, STOPPED = 1, 3, 75  # 75 is EX_TEMPFAIL; 2 is a UserError (ser_hpc.console)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ser_hpc.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="the run directory that the launcher made")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--fold", type=int)
    which.add_argument(
        "--trial",
        type=int,
        nargs="+",
        metavar="N",
        help="instead of fold and seed: the N-th trial of the plan, from 0; several run side by side and share this job's GPUs",
    )
    parser.add_argument("--seed", type=int, help="default: the run's first seed")
    options = parser.parse_args(argv)
    run = RunDir(options.run_dir)
    chosen = _chosen(run, options)
    for trial in chosen:
        if run.trial(trial).is_done:
            print(f"{trial} is done already: {run.trial(trial).path}")
    todo = [trial for trial in chosen if not run.trial(trial).is_done]
    if len(chosen) > 1:
        return _side_by_side(run, todo)
    return train(run, todo[0]) if todo else 0


def _chosen(run: RunDir, options: argparse.Namespace) -> list[Trial]:
    trials = run.trials()
    if options.trial is not None:
        for number in options.trial:
            if not 0 <= number < len(trials):
                raise UserError(f"--trial is {number}, but {run.path} has the trials 0 to {len(trials) - 1}")
        return [trials[number] for number in options.trial]
    trial = Trial(trials[0].seed if options.seed is None else options.seed, options.fold)
    if trial not in trials:
        raise UserError(f"{run.path} has no {trial}; it has {listed(trials, 20)}")
    return [trial]


def _side_by_side(run: RunDir, trials: Sequence[Trial]) -> int:
    """Several small trials in one job: its one task starts their ranks, as the launcher does on a machine without Slurm."""
    from ser_hpc.cluster.local import CANNOT_GO_ON, run_trials
    from ser_hpc.cluster.site import machine
    from ser_hpc.config.load import load

    if not trials:
        return 0
    try:
        codes = run_trials(run, trials, machine(load(run.settings, []).cluster, together=len(trials)), lambda jobs: None)
    except KeyboardInterrupt:
        return STOPPED
    return CANNOT_GO_ON if CANNOT_GO_ON in codes.values() else 0


def train(run: RunDir, trial: Trial) -> int:
    """Run one trial on this rank, and write down how it ended."""
    place = run.trial(trial)
    with StopFlag(stop_time(os.environ)) as stop:  # from the very start: importing torch takes long enough to be asked to stop
        rank = who_am_i(os.environ)
        attempt = attempts.begin(place, rank) if rank.is_main else None
        try:
            _train(run, place, rank, attempt, stop)
        except BaseException as error:
            how, code = _what_it_means(error)
            attempt = attempt or place.current
            attempts.end(attempt, how, None if isinstance(error, Stopped) else f"{type(error).__name__}: {error}")
            if isinstance(error, UserError):
                raise
            if isinstance(error, Stopped | Superseded):
                print(error, flush=True)
                return code
            traceback.print_exc()
            print(f"{trial} failed: {error}", file=sys.stderr, flush=True)
            # The other ranks may wait in a collective for ever: leave at once, so that the launcher ends them too.
            sys.stdout.flush()
            os._exit(code)
    return 0


def _train(run: RunDir, place: TrialDir, rank: Rank, attempt: AttemptDir | None, stop: StopFlag) -> None:
    from ser_hpc.cluster.plan import reopen
    from ser_hpc.engine import world  # torch takes seconds to import: after the mistakes that need none
    from ser_hpc.engine.loop import TrialData, train_trial
    from ser_hpc.engine.watchdog import Watchdog

    experiment = reopen(run)
    settings, fold = experiment.settings, experiment.folds.folds[place.trial.fold]
    limit = timedelta(minutes=settings.train.hang_minutes)
    ranks = world.join(place.path, rank, limit + timedelta(minutes=2))
    (number,) = ranks.from_main(attempt.number if attempt else 0)
    mine = place.attempt(number)
    if ranks.is_main:
        attempts.add(mine, device=world.device_name(ranks.device))
    _check_node(experiment, place, rank)
    data = TrialData(experiment.index, experiment.label_set.classes, experiment.targets, fold, _staged(experiment, fold, rank))
    with Watchdog(limit.total_seconds(), lambda: attempts.end(mine, "hung", "no step was made any more"), FAILED) as watchdog:
        train_trial(place, mine, settings, data, ranks, stop, watchdog)
        if ranks.is_main:
            attempts.end(mine, "done")
        ranks.leave()


def _check_node(experiment: Experiment, place: TrialDir, rank: Rank) -> None:
    from ser_hpc.cluster.estimate import estimate
    from ser_hpc.engine import node_check

    if rank.local == 0:
        a_checkpoint = 3 * 4 * estimate(experiment, on_gpu=True).parameters  # weights and two moments, fp32
        for warning in node_check.check(experiment.settings.train.precision, place.path, a_checkpoint):
            print(warning, flush=True)


def _staged(experiment: Experiment, fold: Fold, rank: Rank) -> Path | None:
    """The folder with copies of the fold's shards on this node's own disk, where the cluster's profile names one."""
    from ser_hpc.config.settings import expanded
    from ser_hpc.data.staging import stage

    where = experiment.settings.cluster.node_local
    if where is None:
        return None
    positions = np.concatenate([fold.train.positions, fold.dev.positions, fold.test.positions])
    root, said = stage(experiment.index, positions, expanded(where), wait_s=_STAGING_S)
    if rank.local == 0:
        print(said, flush=True)
    return root


def _what_it_means(error: BaseException) -> tuple[str, int]:
    """How the attempt ended, and the exit code."""
    if isinstance(error, Stopped):
        return "stopped", STOPPED
    if isinstance(error, Superseded):
        return "superseded", SUPERSEDED
    lost = any(word in str(error) for word in ("gloo", "NCCL", "Connection reset", "Connection closed"))
    return ("lost" if lost and not isinstance(error, UserError) else "failed"), FAILED


if __name__ == "__main__":
    console.run(main)
