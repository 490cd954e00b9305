"""Compute 95 % intervals with speakers, or folds, as the sample, for reports and comparisons: a speaker's clips are alike.

The method is the delete-one jackknife with a t quantile (Tukey 1958; Efron & Tibshirani, An Introduction to the Bootstrap,
1993, ch. 11): leave out one unit after another, all its clips in all seeds, and see how the score moves; on the logit scale,
as scores end at 0 and 1. A percentile bootstrap over speakers, which this has replaced, held the true score in 83 to 93 of 100
simulated runs where it said 95; tools/bench/interval_coverage.py measures what this one holds.

What moves all speakers of a fold at once, its model, is not seen by leaving out one speaker: where leaving out folds moves the
score clearly more than by chance (an F test, at a level chosen by simulation), the fold is the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from ser_hpc.tasks.metrics import uar

MIN_UNITS = 3  # with two, the t quantile is 12.7, and an interval says nothing
_FOLDS_FROM = 0.75  # quantile of F from which on the variance over folds makes them the unit: chosen by simulation
_LEVEL = 0.95
# Of 100 runs simulated with so many speakers, in how many such an interval held the true UAR: the least of three models, from
# tools/bench/results/interval_coverage.json.
COVERAGE: Mapping[int, float] = MappingProxyType({3: 0.95, 5: 0.95, 10: 0.93, 24: 0.93})

Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval, or no bounds and the reason. It rests on `num_units` speakers or folds, as `unit` says, and on
    `num_speakers` (0 where they could not be told apart)."""

    bounds: tuple[float, float] | None
    reason: str | None = None
    num_speakers: int = 0
    unit: str = "speaker"
    num_units: int = 0


def uar_interval(confusions: np.ndarray, folds: np.ndarray | None) -> Interval:
    """Compute the interval of the pooled UAR, averaged over seeds.

    `confusions`: counts (seeds, speakers, C, C), true by predicted; `folds`: the fold that each speaker is tested in, int
    (speakers,), None where one is in several. It tells how the score would vary with other test speakers, and as far as folds
    differ by more than their speakers, with other models; not with other training data.
    """
    return _over_best_unit(lambda counts: logit_jackknife(*leave_one_out(mean_uar, counts)), confusions, folds)


def difference_interval(ours: np.ndarray, theirs: np.ndarray, folds: np.ndarray | None) -> Interval:
    """Compute the interval of the pooled UAR of one system minus another's, from counts (seeds, speakers, C, C) of each.

    The same units are left out of both, so what is hard for both cancels. `folds`: see `uar_interval`.
    """
    seeds = len(ours)

    def paired(counts: np.ndarray) -> Jackknife:
        (one, one_without), (other, other_without) = (
            leave_one_out(mean_uar, part) for part in (counts[:seeds], counts[seeds:])
        )
        return plain_jackknife(one - other, one_without - other_without)

    return _over_best_unit(paired, np.concatenate([ours, theirs]), folds)


def class_intervals(score: Score, confusions: np.ndarray) -> list[Interval]:
    """Compute the interval of each class's score, over the speakers who have the class. `confusions`: (seeds, speakers, C, C).

    `score` gives (..., C) of (..., C, C), of seeds summed up: recalls, or F1s.
    """
    counts, found = confusions.sum(0, keepdims=True), []
    for number in range(counts.shape[-1]):
        has = counts[0, :, number].sum(-1) > 0
        if (num := int(has.sum())) < MIN_UNITS:
            found.append(Interval(None, f"{_speakers(num)} with it, and an interval needs {MIN_UNITS}", num))
            continue
        whole, without = leave_one_out(partial(_of_class, score, number), counts, has)
        found.append(Interval(logit_jackknife(whole, without).bounds, None, num, "speaker", num))
    return found


@dataclass(frozen=True, slots=True)
class Jackknife:
    """The standard error of a score and the bounds of its 95 % interval. `logit_error`: of its logit; None where the bounds
    were not made on that scale."""

    error: float
    bounds: tuple[float, float]
    logit_error: float | None = None


def mean_uar(confusions: np.ndarray) -> np.ndarray:
    """Average the UAR over seeds: (...) of counts (..., seeds, C, C)."""
    return np.asarray(uar(confusions).mean(-1))


def leave_one_out(score: Score, confusions: np.ndarray, units: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Compute a score of counts (seeds, units, C, C), and without each of the units, (units,); `units`: a mask of those."""
    whole = confusions.sum(1)
    parts = confusions if units is None else confusions[:, units]
    return float(score(whole)), score(np.moveaxis(whole[:, None] - parts, 1, 0))


def logit_jackknife(value: float, without: np.ndarray) -> Jackknife:
    """Make the interval of a score in [0, 1] on the logit scale, from it and its values without each unit, (units,).

    Where it is 0 or 1 without some unit: on its own scale, cut off there. Where it is 0 or 1 itself, no unit differs from
    another; the bound is the exact one of a proportion (Clopper & Pearson 1934) with each unit as one trial.
    """
    if value in (0.0, 1.0):
        reach = 1 - ((1 - _LEVEL) / 2) ** (1 / len(without))
        return Jackknife(0.0, (0.0, reach) if value == 0 else (1 - reach, 1.0))
    plain = plain_jackknife(value, without)
    if ((without <= 0) | (without >= 1)).any():
        return Jackknife(plain.error, (max(0.0, plain.bounds[0]), min(1.0, plain.bounds[1])))
    found = plain_jackknife(_logit(value), _logit(without))
    return Jackknife(plain.error, (_expit(found.bounds[0]), _expit(found.bounds[1])), found.error)


def plain_jackknife(value: float, without: np.ndarray) -> Jackknife:
    """Make the interval of any number, from it and its values without each unit, (units,)."""
    units = len(without)
    error = float(np.sqrt((units - 1) / units * ((without - without.mean()) ** 2).sum()))
    reach = t_quantile(units - 1) * error
    return Jackknife(error, (value - reach, value + reach))


def t_quantile(freedom: int, level: float = (1 + _LEVEL) / 2) -> float:
    """Compute a quantile of Student's t distribution."""
    from scipy.special import stdtrit  # a quarter of a second to import: not for every command that knows reports

    return float(stdtrit(freedom, level))


def _f_quantile(freedom: int, other: int) -> float:
    from scipy.special import fdtri

    return float(fdtri(freedom, other, _FOLDS_FROM))


def _logit(score: Any) -> Any:
    return np.log(score / (1 - score))


def _expit(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def _over_best_unit(compute: Callable[[np.ndarray], Jackknife], confusions: np.ndarray, folds: np.ndarray | None) -> Interval:
    """Leave out speakers, or folds where that moves the score clearly more. `confusions`: (..., speakers, C, C)."""
    num_speakers = confusions.shape[1]
    if num_speakers < MIN_UNITS:
        return Interval(None, f"{_speakers(num_speakers)}, and an interval needs {MIN_UNITS}", num_speakers)
    by_speaker = compute(confusions)
    numbers = np.unique(folds) if folds is not None else np.arange(0)
    if MIN_UNITS <= len(numbers) < num_speakers:
        by_fold = compute(np.stack([confusions[:, folds == number].sum(1) for number in numbers], axis=1))
        least = _f_quantile(len(numbers) - 1, num_speakers - len(numbers))
        one, other = by_fold.logit_error, by_speaker.logit_error
        if one is None or other is None:  # two scales do not compare
            one, other = by_fold.error, by_speaker.error
        if one**2 > least * other**2:
            return Interval(by_fold.bounds, None, num_speakers, "fold", len(numbers))
    return Interval(by_speaker.bounds, None, num_speakers, "speaker", num_speakers)


def _of_class(score: Score, number: int, confusions: np.ndarray) -> np.ndarray:
    return np.asarray(score(confusions.sum(-3))[..., number])


def _speakers(number: int) -> str:
    return f"{number} test speaker{'s' * (number != 1)}"


def measured_coverage(num_speakers: int) -> tuple[int, float]:
    """Return the nearest number of speakers that was simulated, and how often the interval held the true UAR there."""
    nearest = min(COVERAGE, key=lambda size: abs(np.log(size / max(1, num_speakers))))
    return nearest, COVERAGE[nearest]
