"""What a run's predictions are worth: every planned clip once, or the report is refused; every trial, or there is no score."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from made import as_of_before, guessed, redigest, remark, replan, rewrite
from sklearn.metrics import cohen_kappa_score, recall_score

from ser_hpc.core.errors import UserError
from ser_hpc.results.cross_validation import cross_validate
from ser_hpc.run import predictions
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import RunDir, Trial

MakeRun = Callable[..., RunDir]
Change = Callable[[list[Prediction]], list[Prediction]]


def reference_uar(found: list[Prediction]) -> float:
    truth = [p.truth for p in found]
    return float(recall_score(truth, [p.predicted for p in found], labels=sorted(set(truth)), average="macro"))


def test_scores_are_those_of_the_saved_predictions(make_run: MakeRun) -> None:
    """Per trial, mean and sample standard deviation over trials, pooled per seed: each redone here the long way."""
    run = make_run(seeds=(0, 1, 4), absent={"02": "sad", "03": "sad"})
    result = cross_validate(run)
    per_trial, pooled, kappas = [], [], []
    for seed in (0, 1, 4):
        of_seed = []
        for fold in range(5):
            test = [
                p for p in predictions.read_predictions(run.trial(Trial(seed, fold)).current.predictions) if p.part == "test"
            ]
            per_trial.append(reference_uar(test))
            of_seed += test
        pooled.append(reference_uar(of_seed))
        kappas.append(cohen_kappa_score([p.truth for p in of_seed], [p.predicted for p in of_seed]))
    assert result.scores is not None
    assert [t.uar for t in result.trials] == pytest.approx(per_trial)
    assert result.scores.uar.mean == pytest.approx(np.mean(per_trial))
    assert result.scores.uar.std == pytest.approx(np.std(per_trial, ddof=1))
    assert result.scores.uar.pooled == pytest.approx(np.mean(pooled))
    assert result.scores.kappa.pooled == pytest.approx(np.mean(kappas), abs=1e-12)  # unlike UAR, not that of the seeds' sum
    assert [s.pooled for s in result.seeds] == pytest.approx(pooled)
    assert result.scores.confusion.sum() == 3 * sum(fold["test"]["num_clips"] for fold in result.plan["folds"])
    assert result.interval.bounds is not None and result.interval.num_speakers == 10


def test_a_class_absent_from_a_test_part_is_left_out_of_its_uar_and_said(make_run: MakeRun) -> None:
    run = make_run(accuracy=1.0, absent={"02": "sad", "03": "sad"})
    trials = {t.trial.fold: t for t in cross_validate(run).trials}
    assert trials[1].absent_classes == ("sad",) and trials[1].uar == 1.0
    assert trials[0].absent_classes == ()


def test_the_mean_is_over_trials_and_not_over_batches_or_clips(make_run: MakeRun) -> None:
    """A small fold that is all wrong counts as much as a large one in the mean, and by its clips when pooled."""
    run = make_run(num_folds=3, accuracy=1.0, absent={"00": "sad"})
    rewrite(run, Trial(0, 0), lambda found: [guessed(p, "sad" if p.truth != "sad" else "angry") for p in found])
    result = cross_validate(run)
    assert result.scores is not None
    assert result.scores.uar.mean == pytest.approx(2 / 3)
    assert result.scores.wa.pooled == pytest.approx(96 / (96 + 42))


def clips_of_all(speakers: Sequence[str]) -> list[tuple[str, str, str]]:
    """(id, speaker, class) of the clips that `make_run` gives these speakers."""
    classes = ("angry", "happy", "neutral", "sad")
    return [(f"{speaker}_{name}_{i}", speaker, name) for speaker in speakers for name in classes for i in range(6)]


def repeat_first(found: list[Prediction]) -> list[Prediction]:
    return [*found, found[0]]


REFUSED: dict[str, tuple[Change, str]] = {
    "filler: a clip twice": (repeat_first, "predicted more than once: emodb-"),
    "clip of another prediction twice": (
        lambda f: [*f[:-1], replace(f[-1], utterance_id=f[-2].utterance_id)],
        "more than once",
    ),
    "clip in dev and in test": (lambda f: [*f, replace(f[0], part="test")], "more than once"),
    "test clip missing": (lambda f: f[:-1], "the test part .* 47 clips instead of 48.* 11 of class sad instead of 12"),
    "dev clip missing": (lambda f: f[1:], "the dev part .* 47 clips instead of 48"),
    "stranger added": (lambda f: [*f, replace(f[-1], utterance_id="x", speaker="99")], "speaker 99, who does not belong"),
    "another speaker's clip instead": (lambda f: [*f[:-1], replace(f[-1], speaker="99")], "speaker 99, who does not belong"),
    "a truth changed": (lambda f: [*f[:-1], replace(f[-1], truth="happy")], "13 of class happy instead of 12"),
    "dev and test mixed up": (
        lambda f: [replace(p, part={"dev": "test", "test": "dev"}[p.part]) for p in f],
        "is not the planned one; .*nothing of speaker",
    ),
    "all of it test": (lambda f: [replace(p, part="test") for p in f], "the dev part .* 0 clips instead of 48"),
    "training clips scored": (lambda f: [replace(f[0], part="train"), *f[1:]], "part of emodb-.* is 'train'"),
    "truth from nowhere": (lambda f: [replace(f[0], truth="bored"), *f[1:]], "true class of emodb-.* is 'bored'"),
    "class from nowhere": (lambda f: [replace(f[0], predicted="bored"), *f[1:]], "predicted class of emodb-.* is 'bored'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_predictions_that_are_not_the_planned_ones_are_refused(make_run: MakeRun, name: str) -> None:
    change, message = REFUSED[name]
    run = make_run(num_folds=3)
    rewrite(run, Trial(0, 1), change)
    with pytest.raises(UserError, match=message) as refused:
        cross_validate(run)
    assert str(run.trial(Trial(0, 1)).current.predictions) in str(refused.value)


def test_a_clip_in_the_test_parts_of_two_folds_is_refused(make_run: MakeRun) -> None:
    """Even where plan and predictions agree on it: pooled, it would count twice."""
    run = make_run(num_folds=3)
    plan = run.read_plan()
    for part in ("test", "dev"):
        plan["folds"][1][part] = plan["folds"][0][part]
    replan(run, plan)
    rewrite(run, Trial(0, 1), lambda _: predictions.read_predictions(run.trial(Trial(0, 0)).current.predictions))
    with pytest.raises(UserError, match="emodb-00_angry_0 is tested in seed 0 fold 0 and again in seed 0 fold 1"):
        cross_validate(run)


def test_seeds_that_tested_different_clips_are_refused(make_run: MakeRun) -> None:
    """The counts agree, the clips do not: one of the two is from other shards. Of a run of before nothing else tells."""
    run = as_of_before(make_run(num_folds=3, seeds=(0, 1)))
    rewrite(run, Trial(1, 2), lambda found: [*found[:-1], replace(found[-1], utterance_id="other")])
    with pytest.raises(UserError, match=r"seed 0 fold 2 and seed 1 fold 2 tested different clips.*emodb-05_sad_5, emodb-other"):
        cross_validate(run)


def test_done_without_predictions_is_refused(make_run: MakeRun) -> None:
    run = make_run(num_folds=3)
    run.trial(Trial(0, 2)).current.predictions.unlink()
    with pytest.raises(UserError, match=r"fold_2 is marked as done but has no predictions\.jsonl"):
        cross_validate(run)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"best_epoch": null}'])
def test_a_damaged_marker_is_refused(make_run: MakeRun, content: str) -> None:
    run = make_run(num_folds=3)
    run.trial(Trial(0, 2)).done.write_text(content)
    with pytest.raises(UserError, match=r"done\.json is damaged"):
        cross_validate(run)


def test_a_plan_that_leaves_out_a_trial_is_refused(make_run: MakeRun) -> None:
    """Else a mean over its trials would pass for one over all folds and seeds."""
    run = make_run(num_folds=3, trials=[{"seed": 0, "fold": 0}, {"seed": 0, "fold": 1}])
    with pytest.raises(UserError, match="its trials are not each of its folds once"):
        cross_validate(run)


def test_missing_trials_are_named_with_their_reason_and_leave_the_run_without_a_score(make_run: MakeRun) -> None:
    run = make_run(seeds=(0, 1))
    said = {0: None, 1: '{"outcome": "failed", "error": "loss is nan", "host": "n1"}', 2: "", 3: '{"ho'}
    for fold, end in said.items():
        folder = run.trial(Trial(1, fold))
        folder.done.unlink()
        if end is None:
            shutil.rmtree(folder.current.path)
        elif end:
            folder.current.end.write_text(end)
    result = cross_validate(run)
    assert [(m.trial.fold, m.reason) for m in result.missing] == [
        (0, "not started"),
        (1, "failed: loss is nan"),
        (2, "not finished"),
        (3, "not finished"),
    ]
    assert result.scores is None and result.interval.bounds is None
    assert result.finished is not None and result.finished.num_trials == 6
    assert [s.seed for s in result.seeds] == [0]


def test_predictions_of_an_unfinished_trial_do_not_count(make_run: MakeRun) -> None:
    """Whatever a trial that is not done has left behind, whole or broken, is not read."""
    run = make_run(num_folds=3)
    run.trial(Trial(0, 0)).done.unlink()
    run.trial(Trial(0, 0)).current.predictions.write_text("half a li")
    result = cross_validate(run)
    assert len(result.trials) == 2 and len(result.missing) == 1


def test_one_trial_has_no_standard_deviation_and_few_speakers_no_interval(make_run: MakeRun) -> None:
    run = make_run(num_folds=3, speakers_per_fold=1)
    plan = run.read_plan()
    replan(run, plan | {"folds": plan["folds"][:1], "trials": plan["trials"][:1]})
    for fold in (1, 2):
        shutil.rmtree(run.trial(Trial(0, fold)).path)
    result = cross_validate(run)
    assert result.scores is not None and np.isnan(result.scores.uar.std)
    assert result.interval.bounds is None and "1 test speaker" in str(result.interval.reason)


def test_speakers_are_told_apart_by_corpus_too(make_run: MakeRun) -> None:
    """Two corpora that both number their speakers from 00: the plan says `corpus/speaker`, and there are twice as many."""
    run = make_run(num_folds=3, speakers_per_fold=2)
    plan = run.read_plan()
    corpus_of = {f"{i:02d}": "ab"[i % 2] for i in range(6)}
    renamed = {speaker: f"{int(speaker) // 2:02d}" for speaker in corpus_of}
    for fold in plan["folds"]:
        for part in ("train", "dev", "test"):
            spoken = clips_of_all(fold[part]["speakers"])
            fold[part]["speakers"] = sorted(f"{corpus_of[s]}/{renamed[s]}" for s in fold[part]["speakers"])
            redigest(fold[part], [(corpus_of[s], clip, renamed[s], name) for clip, s, name in spoken])
    replan(run, plan)
    for fold in range(3):
        rewrite(
            run,
            Trial(0, fold),
            lambda found: [replace(p, corpus=corpus_of[p.speaker], speaker=renamed[p.speaker]) for p in found],
        )
    assert cross_validate(run).interval.num_speakers == 6


def test_unknown_test_speakers_give_no_interval(make_run: MakeRun) -> None:
    """They may be one person or many; a plan does not name them."""
    run = make_run(num_folds=3)
    plan = run.read_plan()
    clips = [("emodb", clip, "Unknown" if s == "01" else s, name) for clip, s, name in clips_of_all(["00", "01"])]
    for part in (plan["folds"][0]["test"], plan["folds"][2]["dev"]):
        part["speakers"] = ["00"]
        redigest(part, clips)
    replan(run, plan)
    for fold in (0, 2):
        rewrite(run, Trial(0, fold), lambda f: [replace(p, speaker="Unknown" if p.speaker == "01" else p.speaker) for p in f])
    result = cross_validate(run)
    assert result.interval.bounds is None and "unknown" in str(result.interval.reason)


def test_a_dev_uar_that_does_not_fit_the_chosen_epoch_is_noted(make_run: MakeRun) -> None:
    """The saved predictions are then by other weights than those that the dev part chose."""
    run = make_run(num_folds=3)
    seen = {t.trial.fold: t.dev_uar for t in cross_validate(run).trials}
    for fold, dev_uar in seen.items():
        remark(run.trial(Trial(0, fold)), best_dev_uar=dev_uar + (0.05 if fold == 1 else 0))
    notes = [note for note in cross_validate(run).notes if "other weights" in note]
    assert len(notes) == 1 and notes[0].startswith("seed 0 fold 1")


def test_damaged_training_clips_are_noted(make_run: MakeRun) -> None:
    """Such a trial learnt from fewer clips than the plan says."""
    run = make_run(num_folds=3)
    assert not any("amaged" in note for note in cross_validate(run).notes)
    for fold, lines in ((1, 2), (2, 1)):
        run.trial(Trial(0, fold)).current.damaged.write_text('{"clip": "a"}\n' * lines, encoding="utf-8")
    (note,) = (note for note in cross_validate(run).notes if "amaged" in note)
    assert "2 of the 3 finished trials" in note
    assert "at most 2, in seed 0 fold 1" in note
