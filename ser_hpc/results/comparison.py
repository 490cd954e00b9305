"""Compare systems on the same test clips, with speakers as the sample, for `ser_hpc.compare`.

The difference of pooled UAR has the report's kind of interval, of the paired difference. The test flips signs (Fisher 1935):
if two systems were the same, each speaker's clips could as well have been predicted by the one as by the other, so exchanging
them speaker by speaker gives the differences that chance would. Several pairs are corrected by Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ser_hpc.results.intervals import Interval, difference_interval, mean_uar, t_quantile
from ser_hpc.results.speaker_counts import SpeakerCounts
from ser_hpc.tasks.metrics import recalls

MIN_SPEAKERS = 6  # with five, the smallest p that there is is .0625
_EXACT_UP_TO = 20  # speakers: a million assignments of signs
_DRAWS = 100_000
_AT_ONCE = 1000
_POWER = 0.8
_SEED = 19790601


@dataclass(frozen=True, slots=True)
class Difference:
    """One system minus another, in pooled UAR averaged over seeds. `p`: of the sign-flip test, None with too few speakers;
    `corrected_p`: by Holm over all pairs; `detectable`: the least difference that would be found in 80 of 100 such comparisons;
    None where no speaker differs from another; `recalls`: the difference of each class's recall, (C,), nan without clips."""

    one: int
    other: int
    value: float
    interval: Interval
    p: float | None
    corrected_p: float | None
    detectable: float | None
    recalls: np.ndarray


def compare(counts: Sequence[SpeakerCounts]) -> list[Difference]:
    """Compare each pair of systems. Their speakers must be the same, in the same order."""
    pairs = list(combinations(range(len(counts)), 2))
    tests = [sign_flip_test(counts[i].confusions, counts[j].confusions) for i, j in pairs]
    corrected = holm([p for p in tests if p is not None])
    return [
        _difference(i, j, counts, p, corrected.pop(0) if p is not None else None)
        for (i, j), p in zip(pairs, tests, strict=True)
    ]


def _difference(i: int, j: int, counts: Sequence[SpeakerCounts], p: float | None, corrected: float | None) -> Difference:
    ours, theirs = counts[i].confusions, counts[j].confusions
    value = float(mean_uar(ours.sum(1)) - mean_uar(theirs.sum(1)))
    interval = difference_interval(ours, theirs, counts[i].folds)
    detectable = None
    if interval.bounds is not None and interval.bounds[0] < interval.bounds[1]:
        freedom = interval.num_units - 1
        reach = (interval.bounds[1] - interval.bounds[0]) / 2
        detectable = reach * (1 + t_quantile(freedom, _POWER) / t_quantile(freedom))
    return Difference(i, j, value, interval, p, corrected, detectable, recalls(ours.sum((0, 1))) - recalls(theirs.sum((0, 1))))


def shares_of_uar(confusions: np.ndarray) -> np.ndarray:
    """Return what each speaker adds to the pooled UAR, averaged over seeds, (speakers,): they sum up to it.

    A clip that is right adds 1 / (clips of its class) / (classes), whoever says it. `confusions`: (seeds, speakers, C, C).
    """
    hits = np.diagonal(confusions, axis1=-2, axis2=-1).mean(0)  # (speakers, C)
    clips = confusions[0].sum((0, -1))  # (C,)
    has = clips > 0
    shares: np.ndarray = (hits[:, has] / clips[has]).sum(-1) / has.sum()
    return shares


def sign_flip_test(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Compute the two-sided p of no difference from counts (seeds, speakers, C, C) of each; None with too few speakers.

    Exact up to 20 speakers; above, 100,000 assignments of signs are drawn, the observed one counted in.
    """
    differences = shares_of_uar(ours) - shares_of_uar(theirs)
    if len(differences) < MIN_SPEAKERS:
        return None
    observed = abs(differences.sum()) - 1e-12  # sums in another order may differ by rounding
    if len(differences) <= _EXACT_UP_TO:
        sums = np.zeros(1)
        for difference in differences[1:]:  # the first keeps its sign: the others' mirror images give the same
            sums = np.concatenate([sums + difference, sums - difference])
        return float((np.abs(sums + differences[0]) >= observed).mean())
    rng, as_large = np.random.default_rng(_SEED), 0
    for _ in range(_DRAWS // _AT_ONCE):  # all at once would be gigabytes for thousands of speakers
        signs = rng.integers(0, 2, (_AT_ONCE, len(differences)), dtype=np.int8) * 2 - 1
        as_large += int((np.abs(signs @ differences) >= observed).sum())
    return (as_large + 1) / (_DRAWS + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Correct p values for being several, by Holm's step-down method; in the given order."""
    order, corrected, highest = np.argsort(values, kind="stable"), [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected
