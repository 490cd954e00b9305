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
      results.report_*                       -> report.md, report.json

Rooms, each importing only from itself and from those before it: core, config, corpora, protocols, shards, data, run, results,
models, engine, launchers, monitor, and the commands pack, inspect, launch, train, status, report, compare.
"""

import getpass
import os

__version__ = "0.1.0"

# Within a container a user id may have no name. torch and others ask for one, some of them when they are imported: here, where
# every command, worker and job comes past first, it gets one.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ["USER"] = f"uid{os.getuid()}"
