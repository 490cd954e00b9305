"""A report says at its top what makes it no result, and below it what was trained; a good run raises no alarm."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made import guessed, rewrite

from ser_hpc.config.load import dump_settings, load_settings
from ser_hpc.core.atomic_io import write_json, write_text
from ser_hpc.results import markdown
from ser_hpc.results.about import describe_run
from ser_hpc.results.cross_validation import CrossValidation, cross_validate
from ser_hpc.results.report_json import to_json
from ser_hpc.results.report_markdown import to_markdown
from ser_hpc.results.report_terminal import to_terminal
from ser_hpc.results.sanity import sanity_warnings
from ser_hpc.run.predictions import read_predictions
from ser_hpc.run.run_dir import RunDir, Trial

MakeRun = Callable[..., RunDir]


def top(cv: CrossValidation) -> str:
    """What stands in report.md before its first score."""
    return to_markdown(cv).split("UAR **")[0]


def losses(run: RunDir, trial: Trial, *values: float) -> None:
    lines = [json.dumps({"epoch": epoch, "train_loss": value}) for epoch, value in enumerate(values)]
    run.trial(trial).current.epochs.write_text("\n".join(lines))


def test_a_collapsed_run_says_so_before_its_scores(make_run: MakeRun) -> None:
    run = make_run()
    for fold in range(5):
        rewrite(run, Trial(0, fold), lambda found: [guessed(prediction, "angry") for prediction in found])
    cv = cross_validate(run)
    assert "**Warning: Of 4 classes 3 are never predicted: happy, neutral, sad.**" in top(cv)
    assert "collapsed: every test clip is given the same class in seed 0 fold 0 (angry)" in top(cv)
    assert to_json(cv)["warnings"] == list(cv.warnings) and len(cv.warnings) == 2
    assert "Warning: Of 4 classes" in str(to_terminal(cv).renderables[0])  # type: ignore[attr-defined]


def test_one_collapsed_trial_among_good_ones_is_named(make_run: MakeRun) -> None:
    run = make_run()
    rewrite(run, Trial(0, 2), lambda found: [guessed(prediction, "sad") for prediction in found])
    (warning,) = cross_validate(run).warnings
    assert "seed 0 fold 2 (sad)" in warning and "fold 1" not in warning


def test_a_loss_that_ran_away(make_run: MakeRun) -> None:
    """The last epoch's training loss counts, not that of dev, which a sure model may be wrong about."""
    run = make_run()
    losses(run, Trial(0, 1), 1.4, 2e8)
    losses(run, Trial(0, 2), 50.0, 0.7)
    losses(run, Trial(0, 3), 1.4, float("nan"))
    (warning,) = cross_validate(run).warnings
    assert "2e+08 in seed 0 fold 1, nan in seed 0 fold 3;" in warning and "1.39" in warning


def test_a_good_run_raises_no_alarm(make_run: MakeRun) -> None:
    run = make_run(seeds=(0, 1))
    losses(run, Trial(0, 0), 1.5, 0.9)
    run.trial(Trial(0, 1)).current.epochs.write_text('{"epo')  # cut off by a kill
    assert cross_validate(run).warnings == () and "Warning" not in to_markdown(cross_validate(run))


def test_a_class_that_nobody_spoke_need_not_be_predicted() -> None:
    confusion = np.array([[3, 1, 0], [1, 3, 0], [0, 0, 0]])
    assert sanity_warnings([], {Trial(0, 0): 3 * confusion}, ["a", "b", "c"]) == []


def test_what_was_trained_on_what_and_how_long(make_run: MakeRun) -> None:
    run = make_run(num_folds=3)
    settings = load_settings(
        None, ["model.weights=facebook/hubert-base-ls960", "model.freeze_layers=6", "train.lr=1e-4", "seeds=3"]
    )
    write_text(run.settings, dump_settings(settings))
    write_json(
        run.code / "c0de" / "origin.json",
        {"version": "1.2", "commit": "a" * 40, "modified": True, "versions": {"python": "3.12.1"}},
    )
    for fold in range(3):
        device = {"device": "NVIDIA H100", "ranks": 2, "code": "c0de", "versions": {"torch": "2.11.0"}}
        write_json(run.trial(Trial(0, fold)).current.attempt, device)
    plan = {"classes": ["a", "b"], "corpora": ["emodb"], "label_set": "two"}
    told = describe_run(run, plan, [run.trial(Trial(0, fold)) for fold in range(3)])
    assert told["data"] == "emodb; label set two, 2 classes"
    assert told["model"] == "facebook/hubert-base-ls960, fine-tuned; its lowest 6 layers frozen"
    assert "train.lr=0.0001" in told["settings that differ from the defaults"]
    assert "model.weights=facebook/hubert-base-ls960" in told["settings that differ from the defaults"]
    assert "seeds" not in told["settings that differ from the defaults"]
    assert told["code"] == "version 1.2, commit aaaaaaaaaaaa, with changes (difference.patch); kept in code/c0de"
    assert told["versions"] == "python 3.12.1, torch 2.11.0" and told["hardware"] == "NVIDIA H100, 2 ranks a trial"
    assert told["time"] == "0.05 h for 3 trials, 1.0 minutes each"


def test_it_stands_in_the_report(make_run: MakeRun) -> None:
    cv = cross_validate(make_run())
    assert re.search("## What was trained\n\n- data: emodb; .*\n- model: facebook/wav2vec2-base, fine-tuned\n", to_markdown(cv))
    assert to_json(cv)["about"]["model"] == "facebook/wav2vec2-base, fine-tuned"


def test_epochs_count_from_1_and_clips_are_called_clips(make_run: MakeRun) -> None:
    """report.json keeps the number in which the files are named."""
    cv = cross_validate(make_run(seeds=(0, 1)))
    assert to_json(cv)["folds"][0]["best_epoch"] == 10
    first = re.search(r"^\| +0 \| +0 \|.*$", to_markdown(cv), re.M)
    assert first and first[0].split("|")[8].strip() == "11"
    assert "| clips | speakers |" in to_markdown(cv) and "| predictions |" not in to_markdown(cv)


@pytest.mark.parametrize("value", [0.9525, 0.5, 0.1235, 2 / 3])
def test_scores_that_are_alike_look_alike(value: float) -> None:
    """A mean over folds and one over pooled clips are the same number, summed in another order."""
    assert len({markdown.format_score(value + difference) for difference in (0.0, 1e-13, -1e-13)}) == 1


def test_the_fold_column_is_whole_however_narrow_the_screen(make_run: MakeRun, tmp_path: Path) -> None:
    from rich.console import Console

    cv = cross_validate(make_run(num_folds=12, speakers_per_fold=9, each=1))
    for width in (72, 80):
        console = Console(width=width, color_system=None)
        with console.capture() as captured:
            console.print(to_terminal(cv))
        lines = captured.get().splitlines()
        assert all(any(line.split()[:2] == [str(fold), "speakers"] for line in lines) for fold in range(12))


def test_few_clips_of_a_class_in_a_test_part_are_named(make_run: MakeRun) -> None:
    """A recall over eight clips moves by 12 points with one of them."""
    assert "under 10 clips of a class" in top(cross_validate(make_run(each=4, name="few")))
    assert "under 10 clips" not in top(cross_validate(make_run(each=6, name="enough")))


def test_seeds_that_are_copies_are_named(make_run: MakeRun) -> None:
    run = make_run(seeds=(0, 1, 2))
    for fold in range(5):
        first = read_predictions(run.trial(Trial(0, fold)).current.predictions)
        rewrite(run, Trial(2, fold), lambda _, first=first: first)  # type: ignore[misc]
    (warning,) = cross_validate(run).warnings
    assert "Seeds 0, 2 predicted the same to the last digit" in warning
