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

from ser_hpc import console
from ser_hpc.engine import attempt as attempts
from ser_hpc.engine.preemption import StopFlag, Stopped, Superseded, end_time
from ser_hpc.engine.rank import Rank, who_am_i
from ser_hpc.errors import UserError, listed
from ser_hpc.results.run_dir import AttemptDir, RunDir, Trial, TrialDir

FAILED, SUPERSEDED, STOPPED = 1, 3, 75  # 75 is EX_TEMPFAIL; 2 is a UserError (ser_hpc.console)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ser_hpc.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="the run directory that the launcher made")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--fold", type=int)
    which.add_argument("--trial", type=int, metavar="N", help="instead of fold and seed: the N-th trial of the plan, from 0")
    parser.add_argument("--seed", type=int, help="default: the run's first seed")
    options = parser.parse_args(argv)
    run = RunDir(options.run_dir)
    trial = _chosen(run, options)
    if run.trial(trial).is_done:
        print(f"{trial} is done already: {run.trial(trial).path}")
        return 0
    return train(run, trial)


def _chosen(run: RunDir, options: argparse.Namespace) -> Trial:
    trials = run.trials()
    if options.trial is not None:
        if not 0 <= options.trial < len(trials):
            raise UserError(f"--trial is {options.trial}, but {run.path} has the trials 0 to {len(trials) - 1}")
        wanted: Trial = trials[options.trial]
        return wanted
    trial = Trial(trials[0].seed if options.seed is None else options.seed, options.fold)
    if trial not in trials:
        raise UserError(f"{run.path} has no {trial}; it has {listed(trials, 20)}")
    return trial


def train(run: RunDir, trial: Trial) -> int:
    """Run one trial on this rank, and write down how it ended."""
    place = run.trial(trial)
    with StopFlag(end_time(os.environ)) as stop:  # from the very start: importing torch takes long enough to be asked to stop
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
    data = TrialData(experiment.index, experiment.label_set.classes, experiment.targets, fold)
    with Watchdog(limit.total_seconds(), lambda: attempts.end(mine, "hung", "no step was made any more"), FAILED) as watchdog:
        train_trial(place, mine, settings, data, ranks, stop, watchdog)
        if ranks.is_main:
            attempts.end(mine, "done")
        ranks.leave()


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
