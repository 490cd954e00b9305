"""Fine-tune large speech models to recognise emotion, on Slurm clusters or one machine.

The way of one utterance:
    wav on disk
      corpora.parsers.<name>.parse(root)     -> Utterance ...
      shards.write.pack(utterances, out)     -> tar shards + index      once per corpus
      protocols.folds.plan_folds(...)        -> Fold ...                speakers never cross train / dev / test
      data.sampler, data.batches             -> Batch (ragged)          order is a pure function of (seed, epoch, step)
      models.classifier                      -> {task: logits}
      engine.loop.train_trial(...)           -> checkpoints, predictions
      results.cross_validation               -> UAR over folds and seeds, its interval, what is missing
      results.report_*, results.page         -> report.html, report.md, report.json
      load(run).predict(wavs)                -> probabilities, calibrated

Rooms, each importing only from itself and from those before it: core, config, corpora, protocols, shards, tasks, data, run,
results, models, inference, engine, launchers, monitor, and the commands pack, inspect, launch, train, status, report, compare,
predict, export.
"""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ser_hpc.inference.load import load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"

# Within a container a user id may have no name. torch and others ask for one, some of them when they are imported: here, where
# every command, worker and job comes past first, it gets one.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ["USER"] = f"uid{os.getuid()}"


def __getattr__(name: str) -> Any:
    """Import `load`, and torch with it, when it is asked for: nothing else waits for them."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ser_hpc.inference.load import load

    return load
