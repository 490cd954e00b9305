"""Scores against scikit-learn, and the interval against what it promises."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import t
from sklearn import metrics as reference

from ser_hpc.results import intervals
from ser_hpc.tasks import metrics

labels = st.integers(2, 8).flatmap(
    lambda c: st.integers(1, 60).flatmap(
        lambda n: st.tuples(
            st.just(c),
            arrays(np.int64, n, elements=st.integers(0, c - 1)),
            arrays(np.int64, n, elements=st.integers(0, c - 1)),
        )
    )
)


@settings(deadline=None)
@given(labels)
def test_every_score_is_scikit_learns(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    """Also where classes are absent from the truth, never predicted, or predicted without being there."""
    num_classes, truth, predicted = case
    confusion = metrics.confusion_matrix(truth, predicted, num_classes)
    present = np.unique(truth)
    assert np.array_equal(confusion, reference.confusion_matrix(truth, predicted, labels=range(num_classes)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of the very cases that are tested here
        assert metrics.uar(confusion) == pytest.approx(reference.balanced_accuracy_score(truth, predicted))
        assert metrics.wa(confusion) == pytest.approx(reference.accuracy_score(truth, predicted))
        f1 = reference.f1_score(truth, predicted, labels=present, average="macro", zero_division=0)
        assert metrics.macro_f1(confusion) == pytest.approx(f1)
        kappa = reference.cohen_kappa_score(truth, predicted)
        recalls = reference.recall_score(truth, predicted, labels=range(num_classes), average=None, zero_division=np.nan)
    assert float(metrics.cohen_kappa(confusion)) == pytest.approx(kappa, nan_ok=True)
    np.testing.assert_allclose(metrics.recalls(confusion), recalls)
    assert np.array_equal(np.isnan(metrics.recalls(confusion)), ~np.isin(range(num_classes), present))


def test_macro_f1_leaves_out_a_class_that_is_only_predicted() -> None:
    """The stated difference from scikit-learn's default, which would count it as 0."""
    confusion = metrics.confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]), 3)
    assert metrics.macro_f1(confusion) == pytest.approx((1 + 2 / 3) / 2)


def test_leading_dimensions_are_carried_through() -> None:
    confusions = np.random.default_rng(0).integers(0, 9, (4, 3, 5, 5))
    for score in (metrics.uar, metrics.wa, metrics.macro_f1, metrics.cohen_kappa, metrics.recalls):
        one_by_one = np.array([[score(confusion) for confusion in row] for row in confusions])
        np.testing.assert_allclose(score(confusions), one_by_one)


def test_no_clips_no_score() -> None:
    """An undefined score is nan, never 0 and never a warning."""
    empty = np.zeros((3, 3), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(np.isnan(score(empty)) for score in (metrics.uar, metrics.wa, metrics.macro_f1, metrics.cohen_kappa))


def simulated(rng: np.random.Generator, num_speakers: int, num_seeds: int = 1) -> np.ndarray:
    """Speakers who differ in how well they are recognised: (num_seeds, num_speakers, 4, 4); the true UAR is 0.65."""
    means, each = np.array([0.5, 0.6, 0.7, 0.8]), 10
    recall = rng.beta(6 * means, 6 * (1 - means), size=(num_speakers, 4))
    hits = rng.binomial(each, recall, size=(num_seeds, num_speakers, 4))
    wrong = np.roll(np.eye(4, dtype=np.int64), 1, axis=1)
    return hits[..., None] * np.eye(4, dtype=np.int64) + (each - hits)[..., None] * wrong


def bounds(confusions: np.ndarray, folds: np.ndarray | None = None) -> tuple[float, float]:
    interval = intervals.uar_interval(confusions, folds)
    assert interval.bounds is not None and interval.reason is None
    return interval.bounds


@pytest.mark.parametrize("num_speakers", [3, 10, 24])
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_interval_is_about_the_pooled_uar(num_speakers: int, num_seeds: int) -> None:
    confusions = simulated(np.random.default_rng(num_speakers), num_speakers, num_seeds)
    low, high = bounds(confusions)
    assert 0 < low < metrics.uar(confusions.sum(1)).mean() < high < 1


def test_the_interval_is_wider_with_fewer_speakers() -> None:
    rng = np.random.default_rng(1)
    widths = {n: np.mean([np.diff(bounds(simulated(rng, n))) for _ in range(20)]) for n in (5, 20, 80)}
    assert widths[5] > 1.5 * widths[20] > 2.25 * widths[80]


def test_the_interval_is_the_jackknifes() -> None:
    """On the logit scale, as Tukey's pseudo-values give it: their mean's t interval about the score."""
    confusions = simulated(np.random.default_rng(2), 8, 2)
    low, high = bounds(confusions)
    logit = [np.log(score / (1 - score)) for score in map(pooled, [confusions, *(without(confusions, i) for i in range(8))])]
    pseudo = 8 * logit[0] - 7 * np.array(logit[1:])
    reach = t.ppf(0.975, 7) * pseudo.std(ddof=1) / np.sqrt(8)
    assert np.log(np.array([low, high]) / (1 - np.array([low, high]))) == pytest.approx([logit[0] - reach, logit[0] + reach])


def pooled(confusions: np.ndarray) -> float:
    return float(metrics.uar(confusions.sum(1)).mean())


def without(confusions: np.ndarray, speaker: int) -> np.ndarray:
    return np.delete(confusions, speaker, axis=1)


@pytest.mark.parametrize("num_speakers", [5, 20])
def test_the_interval_holds_the_true_uar_as_often_as_it_says(num_speakers: int) -> None:
    """And one over clips, with as many clips, would not: the clips of a speaker are alike."""
    rng, runs = np.random.default_rng(2), 400
    by_speaker = by_clip = 0
    for _ in range(runs):
        confusions = simulated(rng, num_speakers)
        low, high = bounds(confusions)
        by_speaker += low <= 0.65 <= high
        recall = metrics.recalls(confusions.sum((0, 1)))
        error = 1.96 * np.sqrt((recall * (1 - recall) / (10 * num_speakers)).sum()) / 4  # as if clips were independent
        by_clip += abs(recall.mean() - 0.65) <= error
    assert 0.92 <= by_speaker / runs <= 0.98
    assert by_clip < by_speaker - 0.08 * runs


def test_a_seeds_twin_adds_nothing() -> None:
    one = simulated(np.random.default_rng(3), 10)
    assert bounds(np.concatenate([one, one])) == pytest.approx(bounds(one))


def test_folds_are_the_unit_where_their_models_differ() -> None:
    """A model that is better for all its speakers is no matter of speakers; without such models, speakers are the sample."""
    rng = np.random.default_rng(4)
    folds = np.arange(20) % 5
    good, bad = simulated(rng, 20), simulated(rng, 20)[:, :, :, [1, 2, 3, 0]]  # the latter is wrong where it was right
    mixed = np.where((folds < 2)[None, :, None, None], good, bad)
    assert intervals.uar_interval(mixed, folds).unit == "fold" and intervals.uar_interval(mixed, folds).num_units == 5
    alike = [intervals.uar_interval(simulated(rng, 20), folds).unit for _ in range(100)]
    assert alike.count("fold") < 40
    assert intervals.uar_interval(mixed, None).unit == "speaker", "where a speaker is tested in several folds"
    assert np.diff(bounds(mixed, folds)) > np.diff(bounds(mixed))


def test_at_the_ends_of_the_scale() -> None:
    """All right, all wrong, or so without one speaker: an interval of some width, within 0 and 1."""
    right = simulated(np.random.default_rng(0), 5)
    right = right.sum(-1, keepdims=True) * np.eye(4, dtype=np.int64)
    assert bounds(right) == pytest.approx((0.025**0.2, 1.0)) and bounds(right[..., [1, 2, 3, 0]]) == (
        0.0,
        pytest.approx(1 - 0.025**0.2),
    )
    nearly = right.copy()
    nearly[0, 0] = nearly[0, 0][:, [1, 2, 3, 0]]  # without the first speaker, all is right
    low, high = bounds(nearly)
    assert 0 <= low < pooled(nearly) < high == 1


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_no_interval_under_three_speakers_and_the_reason_is_given(num_speakers: int) -> None:
    interval = intervals.uar_interval(simulated(np.random.default_rng(0), num_speakers), None)
    assert interval.bounds is None
    assert interval.reason is not None and f"{num_speakers} test speaker" in interval.reason


def test_a_class_is_scored_over_those_who_have_it() -> None:
    """One of two speakers has no interval; speakers without a class change nothing about its recall's."""
    confusions = simulated(np.random.default_rng(5), 9)
    confusions[:, 2:, 0] = 0
    confusions[:, 6:, 1] = 0
    found = intervals.class_intervals(metrics.recalls, confusions)
    assert found[0].bounds is None and "2 test speakers with it" in str(found[0].reason)
    assert [interval.num_speakers for interval in found] == [2, 6, 9, 9]
    assert found[1].bounds == intervals.class_intervals(metrics.recalls, confusions[:, :6])[1].bounds
    recall = metrics.recalls(confusions.sum((0, 1)))
    assert all(of.bounds[0] < recall[i] < of.bounds[1] for i, of in enumerate(found) if of.bounds)


def test_the_coverage_that_reports_name_was_measured() -> None:
    """By the benchmark: the least of its models at so many speakers, in five folds."""
    measured = json.loads((Path(__file__).parents[2] / "tools/bench/results/interval_coverage.json").read_text())
    least: dict[int, float] = {}
    for row in measured["models"]:
        if row["model"] in ("A", "B", "C") and row["folds"] in (5, row["speakers"]):
            least[row["speakers"]] = min(least.get(row["speakers"], 1.0), row["coverage"]["report"])
    assert dict(intervals.COVERAGE) == {size: round(share, 2) for size, share in least.items()}
    assert intervals.measured_coverage(12) == (10, intervals.COVERAGE[10])


def test_a_fold_that_alone_errs_is_the_unit() -> None:
    """Without it the score is 1, which has no logit; without one of its speakers it is not. They are compared all the same."""
    hits, wrong = np.full((1, 10, 4), 10), np.roll(np.eye(4, dtype=np.int64), 1, axis=1)
    hits[:, :2] = 7
    counts = hits[..., None] * np.eye(4, dtype=np.int64) + (10 - hits)[..., None] * wrong
    found = intervals.uar_interval(counts, np.repeat(np.arange(5), 2))
    assert found.bounds is not None and (found.unit, found.num_units) == ("fold", 5)
    assert found.bounds[0] < 0.94 < found.bounds[1] == 1
