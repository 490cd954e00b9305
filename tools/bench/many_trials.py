"""How long the report and the status of a run of a thousand trials take, and how much memory.

    python tools/bench/many_trials.py --out tools/bench/results/many_trials.json

The run is made here, as its launcher and its trials leave it: 50 folds by 20 seeds, IEMOCAP's 5,531 clips of four classes, but
by 100 speakers; each trial with the predictions of its dev and test parts, an attempt, its progress and its epochs. Times are
of whole commands, imports included, in seconds of the wall clock and of the CPU. Each command runs once to warm up.
`--against FOLDER`: the same commands of another checkout, in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ser_hpc.config.load import dump_settings, load_settings
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import seal, write_json, write_text
from ser_hpc.corpora import labels
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.run import identity
from ser_hpc.run.plan import PLAN_FORMAT, fold_digest
from ser_hpc.run.predictions import Prediction, clip_hashes, clips_digest, write_predictions
from ser_hpc.run.run_dir import RunDir, Trial

ROOT = Path(__file__).resolve().parents[2]
FOLDS, SEEDS, SPEAKERS, CLIPS = 50, 20, 100, 5531
CLASSES = ("angry", "happy", "neutral", "sad")
COMMANDS = {"report": ("ser_hpc.report",), "status": ("ser_hpc.status",)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout of this package")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each command (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the run there, or use the one that is there")
    options = parser.parse_args()
    checkouts = {"this": ROOT} | ({"before": options.against.resolve()} if options.against else {})
    with tempfile.TemporaryDirectory() as temporary:
        run = RunDir((options.keep or Path(temporary)) / "many")
        if not run.plan.exists():
            make_run(run)
        measured: dict[str, dict[str, list[dict[str, float]]]] = {name: {of: [] for of in checkouts} for name in COMMANDS}
        for turn in range(options.repeats + 1):
            for name, module in COMMANDS.items():
                for of, folder in checkouts.items():
                    result = timed([sys.executable, "-m", *module, str(run.path)], folder)
                    if turn:
                        measured[name][of].append(result)
    results = {name: {of: medians(times) for of, times in by.items()} for name, by in measured.items()}
    for name, by in results.items():
        print(name, by)
    if options.out:
        size = {"folds": FOLDS, "seeds": SEEDS, "clips": CLIPS, "speakers": SPEAKERS}
        against = " --against FOLDER" * bool(options.against)
        command = f"python tools/bench/many_trials.py --out tools/bench/results/many_trials.json{against}"
        write_json(options.out, {"command": command, "run": size, "results": results})
    return 0


def timed(command: Sequence[str], checkout: Path) -> dict[str, float]:
    """Seconds of the wall clock and of the CPU, and MB of memory at most, of a whole command of that checkout."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=checkout, stdout=subprocess.DEVNULL)
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert process.returncode == 0, command
    wall = time.perf_counter() - began
    return {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "memory_mb": used.ru_maxrss / 1024}


def medians(times: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(one[name] for one in times), 2) for name in times[0]}


def make_run(run: RunDir) -> None:
    """Write the run: settings, labels, identity, plan, and each trial as it ended."""
    rng = np.random.default_rng(0)
    clips = [[] for _ in range(FOLDS)]
    for clip in range(CLIPS):
        speaker = int(rng.integers(SPEAKERS))
        clips[speaker % FOLDS].append((f"Ses{speaker:02d}_impro{clip:05d}", f"{speaker:03d}", CLASSES[int(rng.integers(4))]))
    lines = ["run.name=many", f"seeds={list(range(SEEDS))}", "train.epochs=20"]
    settings, label_set = load_settings(None, lines), LabelSet("iemocap_4", CLASSES, {})
    who = identity.identity_of(settings, label_set, {"shards": "f" * 64})
    assert who is not None
    write_text(run.settings, dump_settings(settings))
    write_text(run.labels, labels.dump_label_set(label_set))
    folds = []
    for fold in range(FOLDS):
        dev = (fold + 1) % FOLDS
        train = [clip for other in range(FOLDS) if other not in (fold, dev) for clip in clips[other]]
        folds.append({"fold": fold, "train": part(train), "dev": part(clips[dev]), "test": part(clips[fold])})
    trials = [Trial(seed, fold) for seed in range(SEEDS) for fold in range(FOLDS)]
    plan: dict[str, Any] = {"format": PLAN_FORMAT, "run": who.digest, "name": "many", "demo": False, "classes": list(CLASSES)}
    plan |= {"label_set": "iemocap_4", "corpora": ["iemocap"], "num_clips": CLIPS, "dropped": {}, "notes": []}
    plan |= {"protocol": f"{FOLDS} groups of speakers; the next group is dev", "seeds": list(range(SEEDS)), "folds": folds}
    plan |= {"trials": [{"seed": t.seed, "fold": t.fold} for t in trials], "fingerprint": "f" * 64}
    identity.write_identity(run, who, [fold_digest(fold) for fold in folds], plan["seeds"])
    write_json(run.plan, seal(plan))
    for trial in trials:
        made = [
            prediction(rng, clip, which)
            for which, fold in (("dev", (trial.fold + 1) % FOLDS), ("test", trial.fold))
            for clip in clips[fold]
        ]
        write_trial(run, trial, made, who.digest)


def part(clips: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    speakers = sorted({speaker for _, speaker, _ in clips})
    return {
        "description": "speakers " + ", ".join(speakers[:4]) + ("" if len(speakers) <= 4 else f" and {len(speakers) - 4} more"),
        "speakers": speakers,
        "sessions": [],
        "num_clips": len(clips),
        "seconds": 4.5 * len(clips),
        "classes": dict(Counter(name for *_, name in clips)),
        "digest": clips_digest(clip_hashes(["iemocap"] * len(clips), *zip(*clips, strict=True))),
    }


def prediction(rng: np.random.Generator, clip: tuple[str, str, str], which: str) -> Prediction:
    utterance_id, speaker, truth = clip
    odds = rng.exponential(size=len(CLASSES)) + 1.5 * (np.array(CLASSES) == truth)
    odds = np.round(odds / odds.sum(), 6)
    probabilities = dict(zip(CLASSES, odds.tolist(), strict=True))
    return Prediction("iemocap", utterance_id, speaker, which, truth, CLASSES[int(odds.argmax())], probabilities)


def write_trial(run: RunDir, trial: Trial, made: Sequence[Prediction], digest: str) -> None:
    """Write a finished trial, with one attempt."""
    folder = run.trial(trial)
    attempt = folder.claim()
    sha256, now = write_predictions(attempt.predictions, made), time.time()
    host = {"number": 1, "job": f"123_{trial.seed * FOLDS + trial.fold}", "nodes": "n1", "host": "n1", "pid": 1, "ranks": 2}
    write_json(attempt.attempt, host | {"started": now - 4000, "device": "NVIDIA H100", "versions": {"torch": "2.11.0"}})
    progress = {"state": "done", "step": 1200, "steps": 1200, "epoch": 20, "epochs": 20, "best_dev_uar": 0.6}
    write_json(attempt.progress, progress | {"seconds_left": 0, "updated": now - 400})
    write_json(attempt.end, {"outcome": "done", "error": None, "host": "n1", "ended": now - 400})
    epochs = "".join(f'{{"epoch": {epoch}, "train_loss": {1.4 / (1 + epoch)}, "dev_uar": 0.6}}\n' for epoch in range(20))
    write_text(attempt.epochs, epochs)
    marker = {"attempt": 1, "best_epoch": 10, "epochs": 20, "steps": 1200, "seconds": 3600.0, "ranks": 2, "run": digest}
    marker |= {"seed": trial.seed, "fold": trial.fold, "predictions_sha256": sha256, "strategy": "ddp"}
    write_json(folder.done, seal(marker))


if __name__ == "__main__":
    cli.run_main(main)
