"""The baseline without a network: eGeMAPS functionals and an RBF support vector machine, in the folds of a run.

    python tools/bench/emodb_svm.py SHARDS [--folds 5] [--tables FOLDER] [--out tools/bench/results/emodb_svm.json]

88 functionals a clip (eGeMAPSv02: Eyben et al., IEEE Trans. Affective Computing 7(2), 2016, by openSMILE); folds as
`folds.protocol=speaker_groups` makes them. C and gamma are chosen on the dev part, the test part is read once. Four figures:

    training    features scaled by mean and deviation of the training part: an honest system, trained on the part that a
                network of a run trains on
    speaker     features scaled within each speaker, test speakers too: transductive, it has heard all of a speaker's clips
    ... + dev   the same machines trained once more on training and dev part, as is usual in the literature

FOLDER gets the predictions of each as a table that `python -m ser_hpc.compare` reads.

Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import opensmile
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json, write_text
from ser_hpc.corpora.labels import label_set_as_annotated
from ser_hpc.corpora.utterance import Metadata
from ser_hpc.protocols.folds import Fold, plan_folds
from ser_hpc.results.intervals import uar_interval
from ser_hpc.shards import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ShardReader
from ser_hpc.tasks.metrics import confusion_matrix, uar, wa

COSTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
GAMMAS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)  # 1 / 88, the usual one, is about 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description="eGeMAPS + RBF-SVM baseline in the folds of a run")
    parser.add_argument("shards", type=Path, help="folder of the packed corpus")
    parser.add_argument("--folds", type=int, default=5, help="groups of speakers (default: 5)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "emodb_svm.json")
    parser.add_argument("--tables", type=Path, metavar="FOLDER", help="where to write the predictions, for ser_hpc.compare")
    arguments = parser.parse_args()

    started = time.monotonic()
    index = ShardIndex.load(arguments.shards)
    labels = label_set_as_annotated(index.metadata)
    fold_plan = plan_folds(index.metadata, labels, "speaker_groups", arguments.folds)
    truth = labels.targets(index.metadata)
    features = functionals(index)
    seconds_features = time.monotonic() - started
    scalings = {"training": features, "speaker": scaled_by_speaker(features, index.metadata)}
    scores: dict[str, Any] = {}
    for name, scaled in scalings.items():
        trials = [trained_and_tested(fold, scaled, truth) for fold in fold_plan.folds]
        for parts in ("train", "train + dev"):
            what = f"{name} scaling, trained on {parts}"
            scores[what] = summary(trials, parts, truth, index.metadata, len(labels.classes))
            if arguments.tables:
                name_of_table = f"svm_{name}_{parts.replace(' + ', '_')}.csv"
                write_table(arguments.tables / name_of_table, trials, parts, truth, index.metadata, labels.classes)
    result = {
        "command": f"python tools/bench/emodb_svm.py SHARDS --folds {arguments.folds}"
        + " --tables FOLDER" * bool(arguments.tables),
        "what": "eGeMAPSv02 functionals, RBF-SVM, balanced class weights; C and gamma by the dev part's UAR; speaker scaling "
        "is transductive; ci95 is of the pooled UAR, by the jackknife over speakers or folds",
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count()},
        "seconds": {"features": round(seconds_features, 1), "all": round(time.monotonic() - started, 1)},
        "clips": len(index.metadata),
        "classes": labels.classes,
        "plan": fold_plan.digest,
        "folds": [
            {part: getattr(fold, part).description for part in ("train", "dev", "test")}
            | {"num_test": len(fold.test.positions)}
            for fold in fold_plan.folds
        ],
        "notes": fold_plan.notes,
        "scores": scores,
    }
    write_json(arguments.out, result)
    for name, score in scores.items():
        mean, std, pooled, ci95 = score["uar"].values()
        interval = f" [{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else ""
        print(f"{name:40}  UAR {mean:.3f} ± {std:.3f}  pooled {pooled:.3f}{interval}  WA {score['wa']:.3f}")
    return 0


def functionals(index: ShardIndex) -> np.ndarray:
    """eGeMAPSv02 functionals of every clip, float64 (num_clips, 88)."""
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    with ShardReader(index) as reader:
        clips = (reader.read(position).astype(np.float32) / 32768 for position in range(len(index.metadata)))
        return np.concatenate([smile.process_signal(clip, RATE).to_numpy(np.float64) for clip in clips])


def scaled_by_speaker(features: np.ndarray, metadata: Metadata) -> np.ndarray:
    """Each speaker's clips to mean 0 and deviation 1, without their labels."""
    scaled = np.empty_like(features)
    for speaker in set(metadata.speaker):
        own = metadata.speaker == speaker
        scaled[own] = StandardScaler().fit_transform(features[own])
    return scaled


def trained_and_tested(fold: Fold, features: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """The test part's predicted classes of the machine that is best on the dev part, and of one trained on dev too."""
    train, dev, test = (part.positions for part in (fold.train, fold.dev, fold.test))
    num_classes = int(truth.max()) + 1

    def predicted(known: np.ndarray, asked: np.ndarray, cost: float, gamma: float) -> np.ndarray:
        scaler = StandardScaler().fit(features[known])
        machine = SVC(C=cost, gamma=gamma, class_weight="balanced").fit(scaler.transform(features[known]), truth[known])
        classes: np.ndarray = machine.predict(scaler.transform(features[asked]))
        return classes

    def dev_uar(choice: tuple[float, float]) -> float:
        return float(uar(confusion_matrix(truth[dev], predicted(train, dev, *choice), num_classes)))

    cost, gamma = max(itertools.product(COSTS, GAMMAS), key=dev_uar)  # of equals the first: the smoothest machine
    return {
        "fold": fold.index,
        "C": cost,
        "gamma": gamma,
        "dev_uar": dev_uar((cost, gamma)),
        "test": test,
        "train": predicted(train, test, cost, gamma),
        "train + dev": predicted(np.union1d(train, dev), test, cost, gamma),
    }


def summary(
    trials: list[dict[str, Any]], parts: str, truth: np.ndarray, metadata: Metadata, num_classes: int
) -> dict[str, Any]:
    """Scores over the folds, shaped as in a run's report.json."""
    confusions = [confusion_matrix(truth[trial["test"]], trial[parts], num_classes) for trial in trials]
    by_fold = np.array([uar(confusion) for confusion in confusions])
    pooled = np.sum(confusions, axis=0)
    return {
        "uar": {
            "mean": float(by_fold.mean()),
            "std": float(by_fold.std(ddof=1)),
            "pooled": float(uar(pooled)),
            "ci95": uar_interval(by_speaker(trials, parts, truth, metadata)[None], folds_of(trials, metadata)).bounds,
        },
        "wa": float(wa(pooled)),
        "confusion": pooled.tolist(),
        "folds": [
            {key: trial[key] for key in ("fold", "C", "gamma", "dev_uar")} | {"uar": float(score)}
            for trial, score in zip(trials, by_fold, strict=True)
        ],
    }


def by_speaker(trials: list[dict[str, Any]], parts: str, truth: np.ndarray, metadata: Metadata) -> np.ndarray:
    """Confusion matrices of the test parts, (speakers, C, C), speakers in order of name."""
    tested = np.concatenate([trial["test"] for trial in trials])
    predicted = np.concatenate([trial[parts] for trial in trials])
    owners = [metadata.speaker[tested] == speaker for speaker in sorted(set(metadata.speaker))]
    return np.stack([confusion_matrix(truth[tested[own]], predicted[own], int(truth.max()) + 1) for own in owners])


def folds_of(trials: list[dict[str, Any]], metadata: Metadata) -> np.ndarray:
    """The fold that tests each speaker, (speakers,), speakers in order of name."""
    fold = {str(speaker): trial["fold"] for trial in trials for speaker in set(metadata.speaker[trial["test"]])}
    return np.array([fold[speaker] for speaker in sorted(fold)])


def write_table(
    path: Path, trials: list[dict[str, Any]], parts: str, truth: np.ndarray, metadata: Metadata, classes: Sequence[str]
) -> None:
    """Write one line a test clip: who was asked, the truth, and what was said."""
    lines = [
        f"{metadata.utterance_id[clip]},{classes[truth[clip]]},{classes[said]}"
        for trial in trials
        for clip, said in zip(trial["test"], trial[parts], strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(["utterance,truth,predicted", *lines]) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
