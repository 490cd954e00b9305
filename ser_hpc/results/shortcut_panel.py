"""Score what a machine reaches without listening, on a run's own folds: the shortcut panel of its report.

For each feature of `shortcut_features`, a logistic regression (scikit-learn's, L2 with C = 1, balanced classes) is fitted to
the standardised training part of each fold and predicts its test part; nothing is chosen, and dev parts are not used. Of texts,
each clip gets the class that training clips of the same text have most often. Predictions of all folds are pooled.

The control is the same with labels exchanged at random among each speaker's own clips (the mean of several): what is left of a
score is known from who speaks, not from how. Of large corpora a part is taken, always the same (`choose_part`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import numpy as np

from ser_hpc.results.intervals import Interval, uar_interval
from ser_hpc.shards.shortcut_features import COLUMNS
from ser_hpc.tasks.metrics import confusion_matrix, uar

VERSION = 1  # of what is computed here: raise it with any change of a number below
MOST_CLIPS, MOST_HOURS, MOST_FOLDS = 10_000, 10.0, 10
NO_INFORMATION = "no information"  # the same for all clips
MAJORITY, TEXT = "majority class", "text"
VOICE = "long-term spectrum"  # of all features the one that a voice makes as well: the others are named before it
_CONTROLS = 5
_ITERATIONS = 200
_SMALLEST = 1e-6  # spread of a feature that tells something
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing (Knuth 1973, 6.4): multiples of it lie evenly


@dataclass(frozen=True, slots=True)
class Clips:
    """What the panel knows of clips, one a row: `classes`, `speakers` and `texts` as int64 (negative: not known), `features`
    float64 (clips, WIDTH), nan where not measured. Unknown speakers of a corpus share a number."""

    classes: np.ndarray
    speakers: np.ndarray
    texts: np.ndarray
    features: np.ndarray


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What one feature scores: pooled UAR, and that of the control. `uar`: None for a feature without information."""

    name: str
    uar: float | None
    interval: Interval
    control: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a corpus that the panel is computed on. `rows`: positions, ascending; `folds`: numbers of the folds."""

    rows: np.ndarray
    folds: tuple[int, ...]


def choose_part(used: np.ndarray, tested: np.ndarray, seconds: np.ndarray, num_folds: int) -> Part:
    """Choose at most MOST_CLIPS clips, of MOST_HOURS, and MOST_FOLDS folds, spread evenly; the same at each call.

    `used`: positions of the clips that are in a fold; `tested`: of these, those in a test part, which get half of the places,
    however few they are; `seconds`: of all clips.
    """
    first = _spread(tested, seconds, MOST_CLIPS // 2, MOST_HOURS / 2)
    hours_left = MOST_HOURS - float(seconds[first].sum()) / 3600
    rest = _spread(np.setdiff1d(used, first), seconds, MOST_CLIPS - len(first), hours_left)
    folds = np.unique(np.linspace(0, num_folds - 1, min(num_folds, MOST_FOLDS)).round().astype(int))
    return Part(np.sort(np.concatenate([first, rest])), tuple(folds.tolist()))


def _spread(positions: np.ndarray, seconds: np.ndarray, clips: int, hours: float) -> np.ndarray:
    """Take so many clips and hours at most, evenly over the positions, in an order that each has whatever the others are."""
    order = positions[np.argsort((positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN, kind="stable")][:clips]
    taken: np.ndarray = order[np.cumsum(seconds[order]) <= hours * 3600]
    return taken


def compute_panel(clips: Clips, folds: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int) -> tuple[Shortcut, ...]:
    """Compute a row for each feature. `folds`: the rows of each fold's training and test part."""
    import_module("sklearn.linear_model")  # only threads of libraries that are there can be limited
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    exchanged = [exchange_within(clips.speakers, clips.classes, rng) for _ in range(_CONTROLS)]
    predictors: dict[str, Callable[[], Predictor | None]] = {
        MAJORITY: lambda: _Majority(),
        TEXT: lambda: _Table(clips.texts) if len(np.unique(clips.texts[clips.texts >= 0])) > 1 else None,
        **{name: partial(_Regression.of, clips.features[:, columns]) for name, columns in COLUMNS.items()},
    }
    with threadpool_limits(1), warnings.catch_warnings():  # the same bits whatever the cores, and not all of a login node
        warnings.simplefilter("ignore")  # of scikit-learn, about an optimum that is not quite reached
        return tuple(_row(name, make(), clips, exchanged, folds, num_classes) for name, make in predictors.items())


def exchange_within(speakers: np.ndarray, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exchange the classes of each speaker's clips at random among them."""
    shuffled = rng.permutation(len(classes))
    new = np.empty_like(classes)
    new[np.argsort(speakers, kind="stable")] = classes[shuffled[np.argsort(speakers[shuffled], kind="stable")]]
    return new


class Predictor:
    """Predicts classes of some clips from what it knows of others."""

    def predict(self, classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Return the predicted class of each clip of `test`, (clips,), having seen `classes` of those of `train` alone."""
        raise NotImplementedError


class _Majority(Predictor):
    def predict(self, classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return np.full(len(test), np.bincount(classes[train]).argmax())


class _Table(Predictor):
    """The class that a name's training clips have most often, each class by its share; of a new name, the largest class."""

    def __init__(self, names: np.ndarray) -> None:
        self._names = np.maximum(names, -1)

    def predict(self, classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        per_class = np.bincount(classes[train])
        counts = np.zeros((self._names.max() + 2, len(per_class)))  # the last row: clips without a name
        np.add.at(counts, (self._names[train], classes[train]), 1)
        counts[-1] = 0
        guess = (counts / np.maximum(per_class, 1)).argmax(1)
        guess[counts.sum(1) == 0] = per_class.argmax()
        found: np.ndarray = guess[self._names[test]]
        return found


class _Regression(Predictor):
    """Logistic regression on standardised columns; what was not measured is taken for the mean of the training part."""

    def __init__(self, features: np.ndarray) -> None:
        self._features = features

    @classmethod
    def of(cls, features: np.ndarray) -> _Regression | None:
        """Make it of the columns that differ from clip to clip; None where there are none."""
        measured = features[np.isfinite(features).all(1)]
        varies = measured.std(0) > _SMALLEST if len(measured) else np.zeros(features.shape[1], dtype=bool)
        return cls(features[:, varies]) if varies.any() else None

    def predict(self, classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression

        if len(np.unique(classes[train])) < 2:
            return np.full(len(test), classes[train][0])
        seen = self._features[train]
        mean, scale = np.nanmean(seen, axis=0), np.nanstd(seen, axis=0)
        scale[~(scale > _SMALLEST)] = 1.0

        def standardise(rows: np.ndarray) -> np.ndarray:
            found: np.ndarray = np.nan_to_num((self._features[rows] - np.nan_to_num(mean)) / scale)
            return found

        solver = LogisticRegression(class_weight="balanced", max_iter=_ITERATIONS).fit(standardise(train), classes[train])
        predicted: np.ndarray = solver.predict(standardise(test))
        return predicted


def _row(
    name: str,
    predictor: Predictor | None,
    clips: Clips,
    exchanged: Sequence[np.ndarray],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
) -> Shortcut:
    if predictor is None:
        return Shortcut(name, None, Interval(None, NO_INFORMATION), None)

    def predict(classes: np.ndarray) -> np.ndarray:
        return np.concatenate([predictor.predict(classes, train, test) for train, test in folds])

    tests = [test for _, test in folds]
    tested = np.concatenate(tests)

    def score(classes: np.ndarray, predicted: np.ndarray) -> float:
        return float(uar(confusion_matrix(classes[tested], predicted, num_classes)))

    own = predict(clips.classes)
    if isinstance(predictor, _Majority):  # which is about the classes alone
        return Shortcut(name, score(clips.classes, own), Interval(None, "the same class for all"), None)
    control = float(np.mean([score(classes, predict(classes)) for classes in exchanged]))
    return Shortcut(name, score(clips.classes, own), _interval(clips, tests, own, num_classes), control)


def _interval(clips: Clips, tests: Sequence[np.ndarray], predicted: np.ndarray, num_classes: int) -> Interval:
    """Compute the interval of a row as that of the run's own score: over speakers, or folds."""
    where = np.concatenate(tests)
    numbers, speakers = np.unique(clips.speakers[where], return_inverse=True)
    if (numbers < 0).any():
        return Interval(None, "some test clips are of unknown speakers")
    counts = np.zeros((1, len(numbers), num_classes, num_classes), dtype=np.int64)
    np.add.at(counts[0], (speakers, clips.classes[where], predicted), 1)
    fold = np.repeat(np.arange(len(tests)), [len(test) for test in tests])
    pairs = np.unique(np.stack([speakers, fold]), axis=1)
    return uar_interval(counts, pairs[1] if len(pairs[0]) == len(numbers) else None)
