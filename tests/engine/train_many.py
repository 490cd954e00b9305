"""Trains trial (0, 0) of each run directory given, in one process group: imports and ZeRO's start-up are paid once.

Started by tests, one process a rank, with RANK and WORLD_SIZE set.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

from ser_hpc.engine.distributed import world
from ser_hpc.engine.fault.preemption import StopFlag
from ser_hpc.engine.fault.watchdog import Watchdog
from ser_hpc.engine.frozen_encoder import FrozenEncoder
from ser_hpc.engine.loop import train_trial
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.run.attempt import claim_attempt
from ser_hpc.run.experiment import reopen_experiment
from ser_hpc.run.rank import rank_from_env
from ser_hpc.run.run_dir import RunDir, Trial

if __name__ == "__main__":
    runs = [RunDir(Path(name)) for name in sys.argv[1:]]
    meeting_place = runs[0].path
    rank = rank_from_env(os.environ)
    ranks = world.join_world(meeting_place, rank, timedelta(minutes=5))
    for run in runs:
        experiment = reopen_experiment(run)
        trial = run.trial(Trial(0, 0))
        (number,) = ranks.broadcast_numbers(claim_attempt(trial, rank).number if rank.is_main else 0)
        data = TrialData(experiment.index, experiment.tasks, experiment.folds.folds[0])
        with StopFlag() as stop, Watchdog(300, lambda: None, exit_code=1) as watchdog:
            train_trial(trial, trial.attempt(number), experiment.settings, data, ranks, stop, watchdog, FrozenEncoder())
    ranks.shut_down()
