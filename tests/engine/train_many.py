"""Trains trial (0, 0) of each run directory given, in one process group: imports and ZeRO's start-up are paid once.

Started by tests, one process a rank, with RANK and WORLD_SIZE set.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ser_hpc.cluster.plan import reopen
from ser_hpc.engine import world
from ser_hpc.engine.loop import TrialData, train_trial
from ser_hpc.results.run_dir import RunDir, Trial

if __name__ == "__main__":
    runs = [RunDir(Path(name)) for name in sys.argv[1:]]
    meeting_place = runs[0].path
    ranks = world.join(meeting_place)
    for run in runs:
        experiment = reopen(run)
        trial = Trial(0, 0)
        run.trial(trial).path.mkdir(parents=True, exist_ok=True)
        data = TrialData(experiment.index, experiment.label_set.classes, experiment.targets, experiment.folds.folds[0])
        train_trial(run.trial(trial), experiment.settings, data, ranks)
    ranks.leave()
