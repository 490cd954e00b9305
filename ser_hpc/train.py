"""`python -m ser_hpc.train --run-dir RUN --fold K [--seed S]`: one trial; what every job runs, on every rank.

Start it alone, under torchrun, or under srun with one task per GPU; it finds its ranks from the environment. Run again, it goes
on from the newest checkpoint; a finished trial is left as it is.

exit codes: 0 done; 1 failed; 2 a mistake in the settings or data; 75 asked to stop, state saved: run again to go on
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ser_hpc import console
from ser_hpc.errors import UserError, listed
from ser_hpc.results.run_dir import RunDir, Trial

STOPPED = 75  # EX_TEMPFAIL


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
    """Run one trial on this rank; a failure is also told to whoever watches the run."""
    from ser_hpc.cluster.plan import reopen
    from ser_hpc.engine import world  # torch takes seconds to import: after the mistakes that need none
    from ser_hpc.engine.loop import TrialData, train_trial
    from ser_hpc.engine.preemption import Stopped
    from ser_hpc.engine.progress import write_progress

    place = run.trial(trial)
    place.path.mkdir(parents=True, exist_ok=True)
    try:
        experiment = reopen(run)
        data = TrialData(experiment.index, experiment.label_set.classes, experiment.targets, experiment.folds.folds[trial.fold])
        ranks = world.join(place.path)
        train_trial(place, experiment.settings, data, ranks)
        ranks.leave()
    except Stopped as stopped:
        print(stopped, flush=True)
        return STOPPED
    except Exception as error:
        if os.environ.get("RANK", "0") == "0" or isinstance(error, UserError):
            write_progress(place, state="failed", error=f"{type(error).__name__}: {error}")
        if isinstance(error, UserError):
            raise
        traceback.print_exc()
        print(f"{trial} failed: {error}", file=sys.stderr, flush=True)
        # The other ranks may wait in a collective for ever: leave at once, so that the launcher ends them too.
        sys.stdout.flush()
        os._exit(1)
    return 0


if __name__ == "__main__":
    console.run(main)
