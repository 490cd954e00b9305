"""How often 95 % intervals hold the true UAR: `python tools/bench/interval_coverage.py [--emodb FOLDER] [--out FILE]`.

Runs are simulated in which the true UAR is known, by three models: A, five classes alike in every speaker, one seed; B, seven
classes, each speaker with a mix of his own, three seeds; C, as B, and the model of each fold moves all its speakers. A speaker
is better or worse recognised than others, as a whole and in each class (normal on the logit scale). Beside the report's
interval: the percentile bootstrap over speakers, and the jackknife over speakers alone and over folds alone. With `--emodb`, B
and C also have Emo-DB's own clips of each speaker and class.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.results import intervals
from ser_hpc.tasks.metrics import uar

CLIPS = 50  # of a speaker
SPEAKER_SD, CLASS_SD, FOLD_SD = 0.5, 0.5, 0.3  # logits
MEAN, SPREAD = 0.5, 0.6  # logits: classes are spread evenly about the mean
RESAMPLES = 1000

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Model:
    """How runs are simulated. `counts`: clips of each speaker and class, (speakers, C), drawn anew by `draw_counts` if None."""

    name: str
    speakers: int
    folds: int
    classes: int
    seeds: int
    fold_sd: float = 0.0
    counts: np.ndarray | None = None

    def means(self) -> np.ndarray:
        return MEAN + np.linspace(-SPREAD, SPREAD, self.classes)

    def truth(self) -> float:
        """Return the UAR over all speakers and models that there could be, by a million draws."""
        sd = np.sqrt(SPEAKER_SD**2 + CLASS_SD**2 + self.fold_sd**2)
        drawn = np.random.default_rng(1).normal(0, sd, 1_000_000)
        return float(np.mean([expit(mean + drawn).mean() for mean in self.means()]))

    def run(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a run: counts (seeds, speakers, C, C), and the fold of each speaker."""
        counts, fold = self.draw_counts(rng), np.arange(self.speakers) % self.folds
        effect = rng.normal(0, SPEAKER_SD, (self.speakers, 1)) + rng.normal(0, CLASS_SD, (self.speakers, self.classes))
        effect += rng.normal(0, self.fold_sd, self.folds)[fold][:, None]
        return confusions_of(counts, rng.binomial(counts, expit(self.means() + effect), (self.seeds, *counts.shape))), fold

    def draw_counts(self, rng: np.random.Generator) -> np.ndarray:
        if self.counts is not None:
            return self.counts
        if self.name == "A":
            return np.full((self.speakers, self.classes), CLIPS // self.classes)
        mixes = rng.dirichlet(np.full(self.classes, 4.0), self.speakers)
        return np.stack([rng.multinomial(CLIPS, mix) for mix in mixes])


def confusions_of(counts: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Make confusion matrices (..., C, C) of the clips and hits of each class, (..., C): a miss is taken for the next class."""
    right = np.eye(counts.shape[-1], dtype=np.int64)
    return hits[..., None] * right + (counts - hits)[..., None] * np.roll(right, 1, axis=1)


def percentile(confusions: np.ndarray, fold: np.ndarray) -> Bounds | None:
    """The percentile bootstrap over speakers."""
    speakers = confusions.shape[1]
    drawn = np.random.default_rng(0).multinomial(speakers, np.full(speakers, 1 / speakers), RESAMPLES).astype(np.float64)
    low, high = np.percentile(uar(np.tensordot(drawn, confusions, axes=(1, 1))).mean(-1), (2.5, 97.5))
    return float(low), float(high)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Bounds | None]] = {
    "report": lambda counts, fold: intervals.uar_interval(counts, fold).bounds,
    "speakers": lambda counts, fold: intervals.uar_interval(counts, None).bounds,
    "folds": lambda counts, fold: (
        intervals.uar_interval(np.stack([counts[:, fold == number].sum(1) for number in np.unique(fold)], axis=1), None).bounds
    ),
    "percentile": percentile,
}


def models(emodb: np.ndarray | None) -> Iterator[Model]:
    for speakers, folds in ((3, 3), (5, 5), (10, 5), (24, 5), (24, 4)):
        yield Model("A", speakers, folds, classes=5, seeds=1)
        yield Model("B", speakers, folds, classes=7, seeds=3)
        yield Model("C", speakers, folds, classes=7, seeds=3, fold_sd=FOLD_SD)
    if emodb is not None:
        for name, sd in (("B, Emo-DB's clips", 0.0), ("C, Emo-DB's clips", FOLD_SD)):
            yield Model(name, len(emodb), 5, emodb.shape[1], seeds=3, fold_sd=sd, counts=emodb)


def measure(model: Model, runs: int) -> dict[str, Any]:
    """How often each method's interval holds the truth, and how wide it is."""
    truth, rng = model.truth(), np.random.default_rng(model.speakers)
    held, width, by_fold = Counter[str](), Counter[str](), 0
    for _ in range(runs):
        confusions, fold = model.run(rng)
        by_fold += intervals.uar_interval(confusions, fold).unit == "fold"
        for name, method in METHODS.items():
            low, high = method(confusions, fold) or (np.nan, np.nan)
            held[name] += low <= truth <= high
            width[name] += high - low
    return {
        "model": model.name,
        "speakers": model.speakers,
        "folds": model.folds,
        "truth": round(truth, 4),
        "coverage": {name: round(held[name] / runs, 4) for name in METHODS},
        "width": {name: round(float(width[name]) / runs, 4) for name in METHODS},
        "folds_were_the_unit": round(by_fold / runs, 4),
    }


def emodb_counts(folder: Path) -> np.ndarray:
    """Clips of each speaker and class by the names of the files, e.g. 03a01Wa.wav."""
    names = [path.stem for path in folder.rglob("*.wav")]
    speakers, classes = sorted({name[:2] for name in names}), sorted({name[5] for name in names})
    found = Counter((name[:2], name[5]) for name in names)
    return np.array([[found[speaker, emotion] for emotion in classes] for speaker in speakers])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.Help)
    parser.add_argument("--emodb", type=Path, help="folder with Emo-DB's wav files")
    options = read_options(parser, argv, runs=3000)
    print(
        f"{'model':20} {'speakers':>8} {'folds':>5}  " + "  ".join(f"{name:>10}" for name in METHODS) + "   fold was the unit"
    )
    found = []
    for model in models(None if options.emodb is None else emodb_counts(options.emodb)):
        found.append(row := measure(model, options.runs))
        shares = "  ".join(f"{row['coverage'][name]:10.3f}" for name in METHODS)
        print(f"{model.name:20} {model.speakers:8} {model.folds:5}  {shares}   {row['folds_were_the_unit']:.2f}", flush=True)
    if options.out:
        keep(options, "interval_coverage.py", argv, models=found)
    return 0


def read_options(parser: argparse.ArgumentParser, argv: Sequence[str] | None, runs: int) -> argparse.Namespace:
    """Read the options of a simulation: `parser`'s own, how many runs, and where to keep the result."""
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(argv)


def keep(options: argparse.Namespace, script: str, argv: Sequence[str] | None, **found: Any) -> None:
    """Keep what a simulation found, with its command."""
    command = shlex.join(["python", f"tools/bench/{script}", *(sys.argv[1:] if argv is None else argv)])
    write_json(options.out, {"command": command, "runs": options.runs, **found})


if __name__ == "__main__":
    cli.run_main(main)
