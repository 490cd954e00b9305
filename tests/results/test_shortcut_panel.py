"""The shortcut panel finds what was planted, takes speakers for speakers, and learns from no test clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from ser_hpc.results import shortcut_panel
from ser_hpc.results.shortcut_panel import (
    NO_INFORMATION,
    Clips,
    Shortcut,
    _Regression,
    _Table,
    choose_part,
    compute_panel,
    exchange_within,
)
from ser_hpc.shards.shortcut_features import COLUMNS, WIDTH

CLASSES, SPEAKERS, FOLDS = 4, 8, 4


def clips(num: int = 320, seed: int = 0) -> Clips:
    """Noise that tells nothing; every speaker says every class as often, and every text."""
    rng, number = np.random.default_rng(seed), np.arange(num)
    return Clips(number // SPEAKERS % CLASSES, number % SPEAKERS, rng.integers(0, 5, num), rng.standard_normal((num, WIDTH)))


def folds(of: Clips) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (
            np.flatnonzero((of.speakers % FOLDS != k) & (of.speakers % FOLDS != (k + 1) % FOLDS)),
            np.flatnonzero(of.speakers % FOLDS == k),
        )
        for k in range(FOLDS)
    ]


def panel(of: Clips) -> dict[str, Shortcut]:
    return {row.name: row for row in compute_panel(of, folds(of), CLASSES)}


def test_a_planted_shortcut_is_found_in_its_row_alone() -> None:
    of = clips()
    of.features[:, COLUMNS["noise floor"].start] += 3 * of.classes
    rows = panel(of)
    assert rows["noise floor"].uar > 0.6 and rows["noise floor"].interval.bounds[0] > 0.5
    assert all(abs(row.uar - 0.25) < 0.12 for name, row in rows.items() if name != "noise floor")
    assert all(abs(row.control - 0.25) < 0.08 for row in rows.values() if row.control is not None)
    assert rows["majority class"].uar == 0.25 and rows["majority class"].control is None


def test_where_emotion_is_the_person_the_control_says_so() -> None:
    """Each speaker says one class, as loud as the two others who say it: exchanged within speakers, the labels stay."""
    of = clips()
    of = Clips(of.speakers % 2, of.speakers, of.texts, of.features)
    of.features[:, COLUMNS["level"]] += 4 * of.classes[:, None]
    rows = {row.name: row for row in compute_panel(of, folds(Clips(of.classes, of.speakers // 2, of.texts, of.features)), 2)}
    assert rows["level"].uar > 0.95 and rows["level"].control == pytest.approx(rows["level"].uar)


def test_what_is_the_same_for_all_has_no_information() -> None:
    of = clips()
    of.features[:, COLUMNS["duration"]] = 2.0
    of.features[:, COLUMNS["digital zeros"]] = np.nan
    rows = panel(Clips(of.classes, of.speakers, np.full(len(of.classes), -1), of.features))
    for name in ("duration", "digital zeros", "text"):
        assert rows[name].uar is None and rows[name].interval.reason == NO_INFORMATION


def test_a_text_that_goes_with_a_class_is_found_and_new_texts_get_the_largest_class() -> None:
    of = clips()
    texts = np.where(np.arange(len(of.classes)) % 3 == 0, of.classes + 10, of.texts)
    assert panel(Clips(of.classes, of.speakers, texts, of.features))["text"].uar > 0.45
    train, test = np.array([0, 1, 2, 3, 4]), np.array([5, 6, 7])
    names, classes = np.array([0, 0, 0, 1, 1, 0, 1, 2]), np.array([0, 0, 1, 1, 1, 9, 9, 9])
    assert _Table(names).predict(classes, train, test).tolist() == [0, 1, 1]
    assert _Table(np.where(names == 2, -1, names)).predict(classes, train, test).tolist() == [0, 1, 1]


def test_clips_without_a_text_tell_nothing_whatever_corpora_they_are_of() -> None:
    """Several corpora without texts: each has a negative number of its own."""
    names, classes = np.array([0, 0, 1, -3, -4, -5]), np.array([0, 0, 1, 2, 2, 2])
    rows = np.arange(len(names))
    assert _Table(names).predict(classes, rows, rows).tolist() == [0, 0, 1, 2, 2, 2]


@settings(max_examples=10)
@given(st.integers(0, 99))
def test_nothing_is_learnt_from_test_clips(seed: int) -> None:
    """Other classes there, or other clips beside them, change no prediction."""
    of, rng = clips(80, seed), np.random.default_rng(seed)
    train, test = folds(of)[0]
    predictor = _Regression(of.features[:, :5])
    expected = predictor.predict(of.classes, train, test)
    other, some = of.classes.copy(), rng.permutation(test)[:3]
    other[test] = rng.integers(0, CLASSES, len(test))
    np.testing.assert_array_equal(predictor.predict(other, train, test), expected)
    np.testing.assert_array_equal(predictor.predict(of.classes, train, some), expected[np.searchsorted(test, some)])


def test_it_is_scikit_learns_pipeline() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    of = clips()
    columns = of.features[:, COLUMNS["first 200 ms"]]
    columns[:, 0] += of.classes
    predicted = np.zeros_like(of.classes)
    for train, test in folds(of):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        predicted[test] = model.fit(columns[train], of.classes[train]).predict(columns[test])
    assert panel(of)["first 200 ms"].uar == pytest.approx(balanced_accuracy_score(of.classes, predicted))


@given(st.integers(0, 99))
def test_classes_are_exchanged_within_speakers_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    speakers, classes = rng.integers(-2, 4, 60), rng.integers(0, 3, 60)
    new = exchange_within(speakers, classes, rng)
    for speaker in np.unique(speakers):
        assert sorted(new[speakers == speaker]) == sorted(classes[speakers == speaker])
    assert (new != classes).any()


def test_unknown_test_speakers_have_no_interval() -> None:
    of = clips()
    rows = panel(Clips(of.classes, np.where(of.speakers == 0, -1, of.speakers), of.texts, of.features))
    assert rows["level"].interval.reason == "some test clips are of unknown speakers" and rows["level"].uar is not None


@settings(max_examples=20)
@given(st.integers(1, 4000), st.integers(1, 40), st.sampled_from([1.0, 0.5, 0.01]))
def test_of_a_large_corpus_a_part_is_taken_the_same_each_time(num: int, num_folds: int, share: float) -> None:
    """Evenly over the corpus, within clips, hours and folds; of few test clips among many others, as many as there is room."""
    rng = np.random.default_rng(num)
    used = np.sort(rng.permutation(3 * num)[:num])
    tested, seconds = used[: max(1, int(share * num))], rng.uniform(1, 9, 3 * num)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcut_panel, "MOST_CLIPS", 500)
        patch.setattr(shortcut_panel, "MOST_HOURS", 0.5)
        part = choose_part(used, tested, seconds, num_folds)
        again = choose_part(used[::-1].copy(), tested[::-1].copy(), seconds, num_folds)
    np.testing.assert_array_equal(part.rows, again.rows)
    assert np.isin(part.rows, used).all() and (np.diff(part.rows) > 0).all() and 1 <= len(part.rows) <= 500
    assert seconds[part.rows].sum() <= 1800
    assert np.isin(tested, part.rows).sum() >= min(len(tested), 90), "900 s, of 9 s each at most"
    assert len(part.folds) == min(num_folds, 10) and {0, num_folds - 1} <= {*part.folds}
    if len(part.rows) > 200 and share == 1:
        assert abs(part.rows.mean() / used.mean() - 1) < 0.1
