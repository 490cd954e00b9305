"""Real speech, real weights, to a UAR: every fold of six Emo-DB speakers, through the package's own training and scoring.

Each fold tests one speaker, chooses the epoch on another, and trains on four. Kept after each; scored over those that are done.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu.told import write_told
from gpu.trials import planned
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json
from ser_hpc.results.cross_validation import cross_validate
from ser_hpc.run.run_dir import RunDir, TrialDir
from ser_hpc.train import train


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--trials", type=int, default=6, help="the first so many folds")
    parser.add_argument("--cut", type=float, help="longer clips are cut to so many seconds")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="a fold that would take longer is not begun")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = planned(settings(options, Path(folder)))
        told: dict[str, Any] = {"epochs": options.epochs, "precision": options.precision, "trials": []}
        for trial in run.trials()[: options.trials]:
            before = time.monotonic()
            code = train(run, trial)
            seconds = time.monotonic() - before
            told["trials"].append(trained(run.trial(trial)) | {"exit_code": code, "seconds": round(seconds, 2)})
            told["scores"] = scores(run)
            write_told(options.out, told)
            print(told["trials"][-1], told["scores"], flush=True)
            if time.monotonic() - began + seconds > options.seconds:
                break
    return 0 if len(told["trials"]) == options.trials else 1


def settings(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Untuned: as whole encoders are usually fine-tuned."""
    training = {"epochs": options.epochs, "lr": 1e-4, "warmup": 0.2, "global_batch": 32, "precision": options.precision}
    return {
        "run": {"name": "whisper-emodb", "root": folder},
        "data": {"shards": [str(options.shards)], "labels": "emodb_7", "max_seconds": options.cut},
        "folds": {"protocol": "leave_one_speaker_out"},
        "model": {"weights": str(options.model)},
        "train": training | {"budget_seconds": 120},
    }


def trained(trial: TrialDir) -> dict[str, Any]:
    done = read_json(trial.done)
    losses = [json.loads(line)["loss"] for line in trial.current.steps.read_text(encoding="utf-8").splitlines()]
    told = {"fold": trial.trial.fold, "best_dev_uar": done["best_dev_uar"], "updates": len(losses)}
    return told | {"first_loss": losses[0], "last_loss": losses[-1]}


def scores(run: RunDir) -> dict[str, Any]:
    """Of the folds that are done."""
    found = cross_validate(run).finished
    assert found is not None, "one is done"
    return {"folds": found.num_trials, "uar": found.uar.mean, "uar_pooled": found.uar.pooled, "wa_pooled": found.wa.pooled}


if __name__ == "__main__":
    cli.run_main(main)
