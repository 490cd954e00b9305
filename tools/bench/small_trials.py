"""A head on a frozen encoder, folds by seeds: CPU seconds beyond the encoder's own pass, trained together and each alone.

python tools/bench/small_trials.py /data/emodb /data/whisper-base [--out small_trials.json]

Packs Emo-DB, has the encoder run once over its clips, then launches each run on this machine as anybody would, from packed
shards to the report. Its features are there already, so all that a launch costs, in all its processes, is beyond that pass.

together   as the launcher does it: each slot's process trains one trial after another
alone      with cluster.trials_per_job=1: processes of its own for each trial; one seed only, as each costs the same
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError, counted

HEADS = {
    "probe": ["model.head={kind: probe, layers: all, statistics: mean}", "train.class_weights=balanced"],
    "mean_pool": ["train.epochs=30", "train.lr=1e-3"],
}
WAYS = {"together": [], "alone": ["cluster.trials_per_job=1"]}
TOOLS = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emodb", type=Path, help="the corpus")
    parser.add_argument("weights", type=Path, help="of Whisper base, a folder")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, help="also keep it as JSON, after each launch; what it has is not measured again")
    options = parser.parse_args()
    machine = {"device": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    found: dict[str, Any] = {"machine": machine, "folds": options.folds, "seeds": options.seeds, "heads": {}}
    if options.out and options.out.exists():
        found = read_json(options.out)
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        run_python(str(TOOLS / "build_shards.py"), "emodb", str(options.emodb), str(shards))
        common = ["--folds", str(options.folds), f"data.shards={shards}"]
        common += ["data.labels=emodb_7", "folds.protocol=speaker_groups", "model.freeze=encoder"]
        common += [f"model.weights={options.weights.resolve()}"]
        for way in options.ways:
            for head in options.heads:
                of_head = found["heads"].setdefault(head, {})
                seeds = options.seeds if way == "together" else 1
                name = f"{way}, {counted(seeds * options.folds, 'trial')}"
                if name in of_head:
                    continue
                given = [*common, *HEADS[head]]
                if not (Path(folder) / f"{head}-features").exists():
                    of_head["encoder_s"] = encode(Path(folder) / f"{head}-features", given)
                    show(head, "the encoder's own pass", of_head["encoder_s"])
                given += ["--seeds", str(seeds), *WAYS[way]]
                used = launched(Path(folder) / f"{head}-{way}", Path(folder) / f"{head}-features", given)
                of_head[name] = used
                show(head, name, used["cpu_s"])
                if options.out:
                    write_json(options.out, found)
    return 0


def encode(root: Path, given: list[str]) -> float:
    """Plan a run and make its features; the CPU seconds of that alone, on one thread."""
    prepared = run_python("-m", "ser_hpc.launch", "--prepare", f"run.root={root}", *given)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import small_trials; small_trials.pool(sys.argv[1])"
    )
    return float(run_python("-c", code, prepared.split()[-1]).split()[-1])


def pool(path: str) -> None:
    """Make a run's features in this process, and print what that took."""
    from functools import partial

    import torch

    from ser_hpc.engine import feature_cache, precision
    from ser_hpc.engine.distributed.world import World
    from ser_hpc.engine.fault.preemption import StopFlag
    from ser_hpc.engine.fault.watchdog import Watchdog
    from ser_hpc.engine.frozen_encoder import FrozenEncoder
    from ser_hpc.engine.trial_data import TrialData, make_batch_source
    from ser_hpc.models.classifier import build_for_tasks
    from ser_hpc.run.experiment import reopen_experiment
    from ser_hpc.run.run_dir import RunDir
    from ser_hpc.tasks.task import ClipTargets

    torch.set_num_threads(1)
    run, world = RunDir(Path(path)), World(0, 1, 0, 1, torch.device("cpu"))
    experiment = reopen_experiment(run)
    settings, fold = precision.choose_precision(experiment.settings, run, world), experiment.folds.folds[0]
    data = TrialData(experiment.index, experiment.tasks, fold)
    encoder = FrozenEncoder().load(settings, 0, partial(build_for_tasks, settings.model, data.tasks, 0))
    clips = make_batch_source(settings, data, ClipTargets.of_tasks(data.tasks, fold.train.positions), world)
    trial = run.trial(run.trials()[0])
    with Watchdog(3600, lambda: None, exit_code=1) as watchdog:
        began = time.process_time()
        feature_cache.pool_features(encoder, clips, trial, settings, data, world, StopFlag(), watchdog)
        print(time.process_time() - began)


def launched(root: Path, features: Path, given: list[str]) -> dict[str, float]:
    """Launch a run whose features are there; CPU seconds of all processes, and the wall clock's."""
    (states,) = features.glob("ser-*/states")
    (root / states.parent.name).mkdir(parents=True)
    shutil.copytree(states, root / states.parent.name / states.name)
    began, before = time.monotonic(), children()
    run_python("-m", "ser_hpc.launch", "--cluster", "local", f"run.root={root}", *given)
    return {"cpu_s": children() - before, "wall_s": time.monotonic() - began}


def children() -> float:
    """Return the CPU seconds of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_python(*arguments: str) -> str:
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"python {' '.join(arguments)} failed: {(ended.stderr or ended.stdout)[-2000:]}")
    return ended.stdout


def show(head: str, what: str, seconds: float) -> None:
    print(f"{head:12}{what:32}{seconds:9.1f} CPU s", flush=True)


if __name__ == "__main__":
    cli.run_main(main)
