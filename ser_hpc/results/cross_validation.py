"""Compute a run's scores from the predictions of its trials, for reports; no recorded score is trusted.

    per trial   scores of its test part; UAR of its dev part
    mean, std   over trials (every seed and fold), sample standard deviation
    pooled      the test parts of all folds of a seed as one set of clips, then averaged over seeds

While trials are missing the run has no scores, only those of its `finished` trials, which say over how many they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ser_hpc.config.extensions import import_from
from ser_hpc.config.load import EXTENSIONS, load_run_settings
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.public_checkpoints import contamination
from ser_hpc.results import intervals, plan_checks
from ser_hpc.results.about import describe_ensemble, describe_run, read_ensemble
from ser_hpc.results.class_scores import ClassScores, score_classes
from ser_hpc.results.intervals import Interval
from ser_hpc.results.sanity import sanity_warnings
from ser_hpc.results.speaker_counts import count_by_speaker
from ser_hpc.results.task_scores import TaskScores, score_tasks
from ser_hpc.run.attempt_end import TrainedAttempt, read_end
from ser_hpc.run.plan import read_plan
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir
from ser_hpc.tasks import metrics

if TYPE_CHECKING:
    from ser_hpc.results.details import Details
    from ser_hpc.results.without_listening import WithoutListening


@dataclass(frozen=True, slots=True)
class TrialScores:
    """One finished trial. Scores are of the test part, but for `dev_uar`; nan where undefined. `confusion` is (C, C).

    `chosen_dev_uar`: what training saw when it chose the epoch.
    """

    trial: Trial
    uar: float
    wa: float
    macro_f1: float
    kappa: float
    dev_uar: float
    chosen_dev_uar: float | None
    best_epoch: int
    num_test: int
    absent_classes: tuple[str, ...]
    confusion: np.ndarray
    test: tuple[Prediction, ...]
    predictions_sha256: str | None


@dataclass(frozen=True, slots=True)
class Missing:
    """A trial that the plan asks for and that is not complete."""

    trial: Trial
    reason: str


@dataclass(frozen=True, slots=True)
class Spread:
    """One score over several trials. `std` is nan with one trial."""

    mean: float
    std: float
    pooled: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of some trials together. `confusion` (C, C) is summed over all of them, `recall` (C,) comes from it."""

    num_trials: int
    uar: Spread
    wa: Spread
    macro_f1: Spread
    kappa: Spread
    confusion: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True, slots=True)
class SeedScores:
    """UAR of one seed all of whose folds are finished: mean over its folds, and pooled."""

    seed: int
    mean: float
    pooled: float


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """The content of a report. `scores` is None while a trial is missing; `finished` is None if no trial is finished.

    `warnings`: why this may be no result; `about`: what was trained, by topic; `tasks`: those beside the main one, over the
    finished trials; `without_listening`: what the scores are to be held against, and `details`: for whom, how sure and what it
    mistakes, where these were looked for.
    """

    plan: dict[str, Any]
    trials: tuple[TrialScores, ...]
    missing: tuple[Missing, ...]
    scores: Scores | None
    finished: Scores | None
    interval: Interval
    seeds: tuple[SeedScores, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    about: dict[str, str] = field(default_factory=dict)
    by_class: tuple[ClassScores, ...] = ()
    tasks: tuple[TaskScores, ...] = ()
    without_listening: WithoutListening | None = None
    details: Details | None = None

    @property
    def classes(self) -> list[str]:
        return list(self.plan["classes"])


def cross_validate(run: RunDir, notes: Sequence[str] = (), attempts: Sequence[TrainedAttempt] | None = None) -> CrossValidation:
    """Read, check (`plan_checks`) and score a run. Raises UserError naming the file and the clip or class that is wrong.

    `notes`: what else its reader must know; `attempts`: of the run, if the caller has read them.
    """
    try:
        return _cross_validate(run, notes, attempts)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        if run.identity.exists():
            raise  # whatever was changed in a run with checksums is found by them
        raise UserError(
            f"{run.path} is damaged: what an earlier version wrote there is not as it writes it ({error!r})"
        ) from error


def _cross_validate(run: RunDir, notes: Sequence[str], attempts: Sequence[TrainedAttempt] | None) -> CrossValidation:
    plan = read_plan(run)
    planned = [run.trial(Trial(**trial)) for trial in plan["trials"]]
    done = [folder for folder in planned if folder.is_done]
    finished_trials = {folder.trial for folder in done}
    trials = tuple(_score(folder, plan) for folder in done)
    plan_checks.refuse_overlaps({t.trial: t.test for t in trials})
    missing = tuple(Missing(folder.trial, _reason(folder)) for folder in planned if folder.trial not in finished_trials)
    finished = _aggregate(trials) if trials else None
    interval, by_class = _speaker_scores(trials, plan, "trials are missing" if missing else None)
    complete = [[t for t in trials if t.trial.seed == seed] for seed in plan["seeds"]]
    with import_from(run.path / EXTENSIONS):  # a target may come from outside the package
        tasks = score_tasks(plan, {t.trial: t.test for t in trials})
    return CrossValidation(
        plan=plan,
        trials=trials,
        missing=missing,
        scores=None if missing else finished,
        finished=finished,
        interval=interval,
        seeds=tuple(_seed_scores(folds) for folds in complete if len(folds) == len(plan["folds"])),
        notes=(
            *([plan_checks.LEGACY_NOTE] if plan["format"] == 1 else []),
            *plan["notes"],
            *notes,
            *_dev_differences(trials),
            *_damaged_clips(done),
        ),
        warnings=(
            *sanity_warnings(done, {t.trial: t.confusion for t in trials}, plan["classes"], alone=not plan.get("tasks")),
            *_identical_seeds(trials),
            *_contaminated_weights(run, trials),
            *_transductive(run),
        ),
        about=describe_ensemble(run, plan) if run.ensemble.exists() else describe_run(run, plan, done, attempts),
        by_class=by_class,
        tasks=tasks,
    )


def _reason(folder: TrialDir) -> str:
    """Say why a trial is missing, as far as its newest attempt recorded it."""
    if folder.newest is None:
        return "not started"
    end = read_end(folder.newest)
    if end.outcome in ("failed", "hung", "lost"):
        return f"{end.outcome}: {end.error or 'no error was written; see its log'}"
    return "stopped, to be gone on with" if end.outcome == "stopped" else "not finished"


def _score(folder: TrialDir, plan: dict[str, Any]) -> TrialScores:
    """Read, check and score one finished trial."""
    done = plan_checks.read_done(folder, plan)
    parts = plan_checks.read_trial_predictions(folder, plan, done)
    confusion = confusion_of(parts["test"], plan["classes"])
    truths = {p.truth for p in parts["test"]}
    return TrialScores(
        trial=folder.trial,
        uar=float(metrics.uar(confusion)),
        wa=float(metrics.wa(confusion)),
        macro_f1=float(metrics.macro_f1(confusion)),
        kappa=float(metrics.cohen_kappa(confusion)),
        dev_uar=float(metrics.uar(confusion_of(parts["dev"], plan["classes"]))),
        chosen_dev_uar=done.get("best_dev_uar"),
        best_epoch=done["best_epoch"],
        num_test=len(parts["test"]),
        absent_classes=tuple(name for name in plan["classes"] if name not in truths),
        confusion=confusion,
        test=parts["test"],
        predictions_sha256=done.get("predictions_sha256"),
    )


def confusion_of(predictions: Sequence[Prediction], classes: Sequence[str]) -> np.ndarray:
    """Count predictions by true (row) and predicted class, int64 (C, C)."""
    index = {name: i for i, name in enumerate(classes)}
    pairs = np.array([(index[p.truth], index[p.predicted]) for p in predictions], dtype=np.int64).reshape(-1, 2)
    return metrics.confusion_matrix(pairs[:, 0], pairs[:, 1], len(classes))


def _aggregate(trials: Sequence[TrialScores]) -> Scores:
    each, per_seed = np.stack([t.confusion for t in trials]), _sum_by_seed(trials)

    def spread(score: Callable[[np.ndarray], np.ndarray]) -> Spread:
        values = score(each)  # a nan stays one: a mean without it would be over some trials
        std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        return Spread(float(values.mean()), std, float(score(per_seed).mean()))

    confusion = each.sum(0)
    return Scores(
        num_trials=len(trials),
        uar=spread(metrics.uar),
        wa=spread(metrics.wa),
        macro_f1=spread(metrics.macro_f1),
        kappa=spread(metrics.cohen_kappa),
        confusion=confusion,
        recall=metrics.recalls(confusion),
    )


def _sum_by_seed(trials: Sequence[TrialScores]) -> np.ndarray:
    """Add up the test clips of each seed, (seeds, C, C)."""
    each, seeds = np.stack([t.confusion for t in trials]), np.array([t.trial.seed for t in trials])
    return np.stack([each[seeds == seed].sum(0) for seed in np.unique(seeds)])


def _seed_scores(folds: Sequence[TrialScores]) -> SeedScores:
    scores = _aggregate(folds)
    return SeedScores(folds[0].trial.seed, scores.uar.mean, scores.uar.pooled)


def _speaker_scores(
    trials: Sequence[TrialScores], plan: dict[str, Any], missing: str | None
) -> tuple[Interval, tuple[ClassScores, ...]]:
    """Compute the interval of the pooled UAR, and the scores of each class; `missing`: why there are no intervals, or None."""
    if not trials:
        return Interval(None, missing), ()
    tested = {t.trial: t.test for t in trials}
    counts = None if missing else count_by_speaker(tested, plan["classes"], plan.get("speaker_aliases", {}))
    reason = missing or "some test clips are of unknown speakers"
    by_class = score_classes(_sum_by_seed(trials), plan["classes"], counts, reason)
    if counts is None:
        return Interval(None, reason), by_class
    return intervals.uar_interval(counts.confusions, counts.folds), by_class


def _dev_differences(trials: Sequence[TrialScores]) -> list[str]:
    """Compare the chosen epoch's dev UAR in training with the saved predictions': they differ if other weights predicted."""
    return [
        f"{t.trial}: dev UAR is {t.dev_uar:.3f} from the saved predictions but was {t.chosen_dev_uar:.3f} when its epoch "
        "was chosen; were they made by other weights?"
        for t in trials
        if t.chosen_dev_uar is not None and abs(t.chosen_dev_uar - t.dev_uar) > 0.01
    ]


def _identical_seeds(trials: Sequence[TrialScores]) -> list[str]:
    """Warn of seeds that predicted the same to the last digit in every fold: together they tell no more than one."""
    made: dict[int, list[tuple[int, str | None]]] = {}
    for t in trials:
        made.setdefault(t.trial.seed, []).append((t.trial.fold, t.predictions_sha256))
    twins: dict[tuple[tuple[int, str | None], ...], list[int]] = {}
    for seed, files in made.items():
        twins.setdefault(tuple(sorted(files)), []).append(seed)
    return [
        f"Seeds {listed([str(seed) for seed in seeds])} predicted the same to the last digit: they count as one "
        "seed, and the deviation over trials is of copies, too."
        for files, seeds in twins.items()
        if len(seeds) > 1 and all(digest for _, digest in files)
    ]


def _contaminated_weights(run: RunDir, trials: Sequence[TrialScores]) -> list[str]:
    """Warn of pre-trained weights that are known to have learnt from a corpus that is tested."""
    if run.ensemble.exists():
        return list(read_ensemble(run)["warnings"])
    with suppress(UserError, OSError):
        model = load_run_settings(run.settings).model
        tested = {p.corpus for t in trials for p in t.test}
        if told := contamination(getattr(model, "weights", None), tested):
            return [told]
    return []


def is_transductive(run: RunDir) -> bool:
    """Tell whether test speakers' clips were normalised by all clips of that speaker."""
    with suppress(UserError, OSError):
        return load_run_settings(run.settings).speaker_normalization == "transductive"
    return False


def _transductive(run: RunDir) -> list[str]:
    if not is_transductive(run):
        return []
    return [
        "These scores are transductive (model.head.normalization): each test speaker's clips were normalised by all of them, "
        "without labels. A new speaker's single clip is not, when the model predicts it: expect less there, and compare with "
        "transductive results alone."
    ]


def _damaged_clips(done: Sequence[TrialDir]) -> list[str]:
    """Count training clips that could not be read, so that a trial learnt from fewer clips than the plan says."""
    counts = {folder.trial: len(text.splitlines()) for folder in done if (text := _describe_damage(folder))}
    if not counts:
        return []
    most = max(counts, key=counts.__getitem__)
    return [
        f"Damaged training clips taught nothing, in {len(counts)} of the {len(done)} finished trials; at most {counts[most]}, "
        f"in {most}: see damaged.jsonl there, and python -m ser_hpc.shards.verify."
    ]


def _describe_damage(folder: TrialDir) -> str:
    try:
        return folder.current.damaged.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
