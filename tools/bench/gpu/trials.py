"""Real trials in this process, as `python -m ser_hpc.train` runs them: planned, trained, and stopped on purpose."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

from ser_hpc.config.settings import Settings
from ser_hpc.engine.distributed import ddp
from ser_hpc.run import experiment
from ser_hpc.run.create_run import write_run
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.train import train


def planned(told: Mapping[str, Any]) -> RunDir:
    run = write_run(experiment.prepare_experiment(Settings.model_validate(told)))
    run.jobs.mkdir(exist_ok=True)
    return run


def stopped(run: RunDir, trial: Trial, after: int) -> int:
    """Train, and be asked to stop, as by a cluster, while so many updates have been made; its exit code."""
    step, made = ddp.DdpStrategy.step, 0

    def counted(self: ddp.DdpStrategy, *arguments: Any) -> Any:
        nonlocal made
        made += 1
        if made == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    with patch.object(ddp.DdpStrategy, "step", counted):
        return train(run, trial)
