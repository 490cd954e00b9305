"""Scores against scikit-learn, and the interval against what it promises."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
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


def bounds(confusions: np.ndarray) -> tuple[float, float]:
    interval = intervals.speaker_interval(confusions)
    assert interval.bounds is not None and interval.reason is None
    return interval.bounds


@pytest.mark.parametrize("num_speakers", [5, 10, 24])
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_interval_is_about_the_pooled_uar(num_speakers: int, num_seeds: int) -> None:
    confusions = simulated(np.random.default_rng(num_speakers), num_speakers, num_seeds)
    low, high = bounds(confusions)
    assert low < metrics.uar(confusions.sum(1)).mean() < high


def test_the_interval_is_deterministic_and_wider_with_fewer_speakers() -> None:
    rng = np.random.default_rng(1)
    widths = {n: np.mean([np.diff(bounds(simulated(rng, n))) for _ in range(20)]) for n in (5, 20, 80)}
    assert widths[5] > 1.5 * widths[20] > 2.25 * widths[80]
    confusions = simulated(rng, 10)
    assert intervals.speaker_interval(confusions) == intervals.speaker_interval(confusions)


def test_the_interval_holds_the_true_uar_about_as_often_as_it_says() -> None:
    """And one over clips, with as many clips, would not: the clips of a speaker are alike."""
    rng, runs = np.random.default_rng(2), 150
    by_speaker = by_clip = 0
    for _ in range(runs):
        confusions = simulated(rng, 20)
        low, high = bounds(confusions)
        by_speaker += low <= 0.65 <= high
        recall = metrics.recalls(confusions.sum((0, 1)))
        error = 1.96 * np.sqrt((recall * (1 - recall) / 200).sum()) / 4  # 200 clips a class, as if independent
        by_clip += abs(recall.mean() - 0.65) <= error
    assert 0.88 <= by_speaker / runs <= 0.99
    assert by_clip < by_speaker - 0.08 * runs


def test_the_same_speakers_are_drawn_for_every_seed() -> None:
    """A seed's twin adds nothing: were speakers drawn for each seed apart, the interval would shrink."""
    one = simulated(np.random.default_rng(3), 10)
    assert bounds(np.concatenate([one, one])) == pytest.approx(bounds(one))


@pytest.mark.parametrize("num_speakers", [1, 4])
def test_no_interval_under_five_speakers_and_the_reason_is_given(num_speakers: int) -> None:
    interval = intervals.speaker_interval(simulated(np.random.default_rng(0), num_speakers))
    assert interval.bounds is None
    assert interval.reason is not None and f"{num_speakers} test speaker" in interval.reason
