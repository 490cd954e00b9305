"""Whisper on the real frames against Whisper on 30 s: `python tools/bench/whisper_frames.py SHARDS WEIGHTS --tables FOLDER`

A frozen encoder, under the same probe in the same folds as `configs/any_corpus_probe.yaml` makes them, over the mean frame of

    real                 the clip alone, as this package runs Whisper
    padded, real frames  the clip padded with silence to 30 s, as Whisper was trained; the mean of the clip's own frames
    padded, all frames   the same, and the mean of all 1,500 frames, as transformers' classifier and public benchmarks do

of its last layer, and of all its layers side by side. Each probe's L2 penalty is chosen on dev, the test part read once. FOLDER
gets the predictions of each as a table that `python -m ser_hpc.compare` reads.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emodb_svm import by_speaker, folds_of, write_table

from ser_hpc.config.heads import ProbeSettings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.corpora.labels import label_set_as_annotated
from ser_hpc.engine.probe import feature_scale, fit_logistic_regression
from ser_hpc.models.classifier import Classifier, build_classifier, frames_of_layers
from ser_hpc.models.heads.linear_probe import LinearProbe
from ser_hpc.protocols.folds import Fold, plan_folds
from ser_hpc.results.intervals import uar_interval
from ser_hpc.shards import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ShardReader
from ser_hpc.tasks.metrics import confusion_matrix, uar

WINDOW_S = 30
FRAME = 320  # samples


def main() -> int:
    parser = argparse.ArgumentParser(description="Whisper on real frames against Whisper padded to 30 s")
    parser.add_argument("shards", type=Path, help="folder of the packed corpus")
    parser.add_argument("weights", type=Path, help="folder of a Whisper model")
    parser.add_argument("--folds", type=int, default=5, help="groups of speakers (default: 5)")
    parser.add_argument("--tables", type=Path, metavar="FOLDER", help="where to write the predictions, for ser_hpc.compare")
    parser.add_argument("--out", type=Path, help="keep it as JSON")
    options = parser.parse_args()

    index = ShardIndex.load(options.shards)
    labels = label_set_as_annotated(index.metadata)
    folds = plan_folds(index.metadata, labels, "speaker_groups", options.folds).folds
    truth = labels.targets(index.metadata)
    with ShardReader(index) as reader:
        clips = [reader.read(position) for position in range(len(index.metadata))]
    arms: dict[str, Any] = {}
    model = build(options.weights)
    for what, given in (("real", clips), ("padded", [padded(clip) for clip in clips])):
        began = time.monotonic()
        own, every = mean_states(model, given, [len(clip) for clip in clips])
        seconds = round(time.monotonic() - began, 1)
        pooled = {"real": own} if what == "real" else {"padded, real frames": own, "padded, all frames": every}
        for (name, states), layers in itertools.product(pooled.items(), ("last layer", "all layers")):
            features = states[:, -1:] if layers == "last layer" else states
            trials = [trained_and_tested(fold, features, truth) for fold in folds]
            score = summary(trials, truth, index.metadata, len(labels.classes))
            arms[f"{name}, {layers}"] = score | {"encoder_seconds": seconds}
            low, high = score["ci95"]
            print(f"{name}, {layers}:".ljust(34), f"UAR {score['pooled']:.3f} [{low:.3f}, {high:.3f}]", flush=True)
            if options.tables:
                file = f"{name}_{layers}.csv".replace(", ", "_").replace(" ", "_")
                write_table(options.tables / file, trials, "train", truth, index.metadata, labels.classes)
    if options.out:
        write_json(options.out, {
            "command": "python tools/bench/whisper_frames.py SHARDS WEIGHTS --tables FOLDER --out "
            f"tools/bench/results/{Path(__file__).stem}.json",
            "what": "pooled UAR of linear probes of a frozen Whisper base on Emo-DB, L2 chosen on dev; ci95 by the jackknife",
            "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "clips": len(clips),
            "arms": arms,
        })  # fmt: skip
    return 0


def build(weights: Path) -> Classifier:
    """Build the frozen encoder, which takes a clip padded with silence as any other clip."""
    settings = EncoderModel(weights=str(weights), freeze="encoder", head=ProbeSettings(layers="all", statistics="mean"))
    return build_classifier(settings, 2, seed=0).eval()


def padded(clip: np.ndarray) -> np.ndarray:
    """Return the clip with silence up to 30 s."""
    return np.pad(clip, (0, WINDOW_S * RATE - len(clip)))


@torch.no_grad()
def mean_states(model: Classifier, clips: list[np.ndarray], samples: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Average each layer's frames over each clip's first `samples`, and over the whole clip: float32 (clips, layers, width)."""
    assert isinstance(model.head, LinearProbe)
    parts = []
    for clip, real in zip(clips, samples, strict=True):
        states, lengths = frames_of_layers(
            model.frontend, model.encoder, torch.from_numpy(clip), torch.tensor([0, len(clip)]), model.head.layers
        )
        layers = torch.stack(list(states))  # (layers, frames, width)
        own = min(int(lengths), -(-real // FRAME))
        parts.append((layers[:, :own].mean(1).numpy(), layers.mean(1).numpy()))
    own_means, all_means = zip(*parts, strict=True)
    return np.stack(own_means), np.stack(all_means)


def trained_and_tested(fold: Fold, features: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Fit a probe on the training part by each penalty, and predict the test part with the one that is best on dev."""
    train, dev, test = (part.positions for part in (fold.train, fold.dev, fold.test))
    rows = features.reshape(len(features), -1).astype(np.float64)
    rows = (rows - rows[train].mean(0)) / feature_scale(rows[train], features.shape[-1])
    num_classes = int(truth.max()) + 1
    weights = (len(train) / num_classes / np.bincount(truth[train], minlength=num_classes))[truth[train]]

    def fitted(penalty: float) -> Callable[[np.ndarray], np.ndarray]:
        weight, bias = fit_logistic_regression(rows[train], truth[train], weights, penalty, num_classes)
        return lambda positions: (rows[positions] @ weight.T + bias).argmax(1)

    probes = [fitted(penalty) for penalty in sorted(ProbeSettings().l2, reverse=True)]
    best = max(probes, key=lambda probe: float(uar(confusion_matrix(truth[dev], probe(dev), num_classes))))
    return {"fold": fold.index, "test": test, "train": best(test)}


def summary(trials: list[dict[str, Any]], truth: np.ndarray, metadata: Any, num_classes: int) -> dict[str, Any]:
    """Pool the folds' predictions."""
    confusion = np.sum([confusion_matrix(truth[trial["test"]], trial["train"], num_classes) for trial in trials], axis=0)
    counts = by_speaker(trials, "train", truth, metadata)[None]
    return {"pooled": float(uar(confusion)), "ci95": uar_interval(counts, folds_of(trials, metadata)).bounds}


if __name__ == "__main__":
    cli.run_main(main)
