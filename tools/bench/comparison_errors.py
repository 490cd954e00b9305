"""How often two systems are told apart: `python tools/bench/comparison_errors.py [--runs 1500] [--out FILE]`.

Pairs of runs are simulated as in interval_coverage.py's model B: ten speakers in five folds, three seeds, seven classes, the
same speakers for both systems, and models that differ by chance from fold to fold and seed to seed. Told: how often
`ser_hpc.compare` calls equal systems different at 5 % (false alarms), and one that is half a logit better (power), and how
often its interval of the difference holds the true one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import interval_coverage as simulation
import numpy as np
from scipy.special import expit

from ser_hpc.core import cli
from ser_hpc.results.comparison import sign_flip_test
from ser_hpc.results.intervals import difference_interval

SPEAKERS, FOLDS, SEEDS, CLASSES = 10, 5, 3, 7
GAIN = 0.5  # logits by which the better system is better
NOISES = (0.0, 0.15, 0.3)  # logits: standard deviation of what a trial's model adds for all its speakers


def pair(rng: np.random.Generator, model: simulation.Model, noise: float, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts (seeds, speakers, C, C) of two systems on the same clips, the first `gain` logits better."""
    counts, fold = model.draw_counts(rng), np.arange(SPEAKERS) % FOLDS
    effect = rng.normal(0, simulation.SPEAKER_SD, (SPEAKERS, 1)) + rng.normal(0, simulation.CLASS_SD, (SPEAKERS, CLASSES))

    def system(better: float) -> np.ndarray:
        models = rng.normal(0, noise, (SEEDS, FOLDS))[:, fold, None]
        return simulation.confusions_of(counts, rng.binomial(counts, expit(model.means() + effect + models + better)))

    return system(gain), system(0.0)


def measure(noise: float, runs: int) -> dict[str, Any]:
    """How often equal and unequal systems are told apart, and the interval's coverage of no difference."""
    rng = np.random.default_rng(round(1000 * noise) + 1)
    model = simulation.Model("B", SPEAKERS, FOLDS, CLASSES, SEEDS)
    fold, alarms, found, held = np.arange(SPEAKERS) % FOLDS, 0, 0, 0
    for _ in range(runs):
        equal, better = pair(rng, model, noise, 0.0), pair(rng, model, noise, GAIN)
        p, p_better = sign_flip_test(*equal), sign_flip_test(*better)
        assert p is not None and p_better is not None
        alarms, found = alarms + (p <= 0.05), found + (p_better <= 0.05)
        bounds = difference_interval(*equal, fold).bounds
        held += bounds is not None and bounds[0] <= 0 <= bounds[1]
    shares = {"false_alarms": alarms / runs, "power": found / runs, "interval_coverage": held / runs}
    return {"model_noise": noise, **{name: round(float(share), 4) for name, share in shares.items()}}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.Help)
    options = simulation.read_options(parser, argv, runs=1500)
    found = []
    for noise in NOISES:
        found.append(measure(noise, options.runs))
        print("  ".join(f"{name} {value}" for name, value in found[-1].items()), flush=True)
    if options.out:
        simulation.keep(options, "comparison_errors.py", argv, comparisons=found)
    return 0


if __name__ == "__main__":
    cli.run_main(main)
