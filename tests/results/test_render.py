"""What programs and people read: strict JSON that keeps its keys, and text that says what it is over."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from made import redigest, replan, rewrite
from rich.console import Console

from ser_hpc.core.atomic_io import write_json
from ser_hpc.results.cross_validation import CrossValidation, cross_validate
from ser_hpc.results.markdown import shorten_names
from ser_hpc.results.report_json import to_json
from ser_hpc.results.report_markdown import to_markdown
from ser_hpc.results.report_summary import DEMO_NOTE
from ser_hpc.results.report_terminal import to_terminal
from ser_hpc.run.run_dir import RunDir, Trial

MakeRun = Callable[..., RunDir]
SCORES = ("uar", "wa", "macro_f1", "kappa")


def terminal(cv: CrossValidation, width: int = 80) -> str:
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(to_terminal(cv))
    return captured.get()


def without(run: RunDir, *missing: tuple[int, int]) -> RunDir:
    for seed, fold in missing:
        shutil.rmtree(run.trial(Trial(seed, fold)).path)
    return run


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


def test_report_json_keeps_its_keys(make_run: MakeRun) -> None:
    """Other programs read them: keys may be added here, never changed."""
    report = to_json(cross_validate(make_run(seeds=(0, 1), dropped={"xxx": 3}, notes=["A caveat."])))
    assert {key: type(value) for key, value in report["uar"].items()} == {
        "mean": float,
        "std": float,
        "pooled": float,
        "ci95": list,
        "ci95_reason": type(None),
        "ci95_unit": str,
        "ci95_units": int,
    }
    assert {type(report[name]) for name in ("wa", "macro_f1", "kappa")} == {float}
    assert {name: set(spread) for name, spread in report["over_trials"].items()} == {
        name: {"mean", "std"} for name in ("wa", "macro_f1", "kappa")
    }
    low, high = report["uar"]["ci95"]
    assert 0 <= low < report["uar"]["pooled"] < high <= 1
    assert report["classes"] == ["angry", "happy", "neutral", "sad"] == list(report["recall"])
    assert [len(row) for row in report["confusion"]] == [4] * 4
    assert report["num_trials"] == 10 and report["num_test"] == 240 and sum(map(sum, report["confusion"])) == 480
    assert report["missing"] == [] and report["partial"] is None
    assert {key: type(value) for key, value in report["folds"][0].items()} == {
        "seed": int,
        "fold": int,
        "uar": float,
        "wa": float,
        "macro_f1": float,
        "kappa": float,
        "dev_uar": float,
        "num_test": int,
        "best_epoch": int,
        "absent_classes": list,
    }
    assert [(fold["seed"], fold["fold"]) for fold in report["folds"]] == [(seed, fold) for seed in (0, 1) for fold in range(5)]
    assert report["dropped"] == {"xxx": 3} and "A caveat." in report["notes"]
    assert (report["name"], report["demo"], report["label_set"]) == ("emodb", False, "emodb_7")
    assert [seed["seed"] for seed in report["seeds"]] == [0, 1]


def test_undefined_numbers_are_null(make_run: MakeRun) -> None:
    """One fold, one test speaker, one class, all of it right: no deviation, kappa or interval; two classes without recall."""
    run = make_run(num_folds=3, speakers_per_fold=1, classes=("angry", "sad", "calm"), accuracy=1.0, absent={"00": "sad"})
    plan = run.read_plan()
    fold = plan["folds"][0]
    rewrite(run, Trial(0, 0), lambda found: [p for p in found if p.part == "dev" or p.truth == "angry"])
    fold["test"] |= {"num_clips": 6, "classes": {"angry": 6}}
    redigest(fold["test"], [("emodb", f"00_angry_{i}", "00", "angry") for i in range(6)])
    replan(run, plan | {"folds": [fold], "trials": plan["trials"][:1]})
    for number in (1, 2):
        shutil.rmtree(run.trial(Trial(0, number)).path)
    report = to_json(cross_validate(run))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["uar"] == {
        "mean": 1.0,
        "std": None,
        "pooled": 1.0,
        "ci95": None,
        "ci95_reason": "1 test speaker, and an interval needs 3",
    }
    assert report["kappa"] is None and report["folds"][0]["kappa"] is None
    assert report["recall"] == {"angry": 1.0, "sad": None, "calm": None}
    assert report["folds"][0]["absent_classes"] == ["sad", "calm"]


@pytest.mark.parametrize(
    "missing",
    [
        ((0, 0),),
        ((1, 4),),
        ((0, 1), (1, 1)),
        tuple((1, fold) for fold in range(5)),
        tuple((s, f) for s in (0, 1) for f in range(4)),
    ],
    ids=len,
)
def test_a_report_never_shows_a_mean_over_some_trials_as_if_it_were_over_all(make_run: MakeRun, missing: Any) -> None:
    """No score of the run in any of the three forms; what the finished ones give is named so, with their number."""
    cv = cross_validate(without(make_run(seeds=(0, 1)), *missing))
    report, markdown, shown = to_json(cv), to_markdown(cv), terminal(cv)
    assert set(leaves([report[name] for name in (*SCORES, "recall", "confusion")])) == {None, "trials are missing"}
    finished = 10 - len(missing)
    assert report["partial"]["num_trials"] == finished == len(report["folds"])
    assert [(m["seed"], m["fold"]) for m in report["missing"]] == list(missing)
    first = markdown.split("\n\n")[1]
    assert first.startswith("**Incomplete") and f"{len(missing)} of 10" in first
    mean = f"{report['partial']['uar']['mean']:.3f}"
    says_so = f"The {finished} finished trial{'s' * (finished > 1)} alone: UAR {mean}"
    for form in (markdown, shown):
        assert says_so in " ".join(form.split())
        assert all(f"seed {seed} fold {fold}: not started" in form for seed, fold in missing)
        assert not re.search(r"(?m)^\W*(mean|pooled|± std)\b", form.split("UAR of each seed")[0])
    for fold in {fold for _, fold in missing}:
        row = next(line for line in shown.splitlines() if re.match(rf"\s+{fold}\s+speaker", line))
        assert not re.search(r"\d\.\d", row) and "missing" in row
    for heading in re.findall("(?m)^## (?:Classes|Confusion).*", markdown):
        assert f"the {finished} finished trial" in heading


def test_no_trial_at_all(make_run: MakeRun) -> None:
    cv = cross_validate(without(make_run(num_folds=3), (0, 0), (0, 1), (0, 2)))
    assert to_json(cv)["partial"] is None and len(to_json(cv)["missing"]) == 3
    assert "there are no scores yet" in to_markdown(cv) and "3 of 3 trials are missing" in terminal(cv)


def test_the_markdown_says_what_its_numbers_are(make_run: MakeRun) -> None:
    """One sentence with the interval first; absent classes, the plan's notes and the demo are said."""
    run = make_run(seeds=(0, 1), absent={"02": "sad", "03": "sad"}, demo=True, notes=["Dev speakers are\nin training."])
    markdown, report = to_markdown(cross_validate(run)), to_json(cross_validate(run))
    headline = markdown.split("\n\n")[1]
    low, high = report["uar"]["ci95"]
    assert f"**{report['uar']['pooled']:.3f}**, 95% interval {low:.3f} to {high:.3f} over 10 speakers" in headline
    assert "over 5 folds and 2 seeds" in headline and "chance is 0.250" in headline
    assert "left out of UAR and macro-F1 there: sad in fold 1." in markdown
    assert "- Dev speakers are in training." in markdown and f"- {DEMO_NOTE}" in markdown
    assert DEMO_NOTE in " ".join(terminal(cross_validate(run)).split())


def test_tables_are_tables(make_run: MakeRun) -> None:
    """As Markdown and as plain text: in each table all rows have the same number of cells and the same length."""
    run = without(make_run(seeds=(0, 1)), (1, 2))
    write_json(run.trial(Trial(1, 2)).claim().end, {"outcome": "failed", "error": "a | b\n\nc", "host": "n1"})
    tables = re.findall(r"(?m)(?:^\|.*\n)+", to_markdown(cross_validate(run)))
    assert len(tables) == 5
    for table in tables:
        rows = table.splitlines()
        assert len({len(row) for row in rows}) == 1 and len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "- seed 1 fold 2: failed: a | b c\n" in to_markdown(cross_validate(run))


def test_the_terminal_table_fits_80_columns_and_shows_any_text_as_it_is(make_run: MakeRun) -> None:
    """Also with large folds, long words and an error that looks like markup; no number and no heading is cut."""
    run = make_run(num_folds=12, seeds=(0, 1), speakers_per_fold=9, each=2)
    assert max(map(len, terminal(cross_validate(run)).splitlines())) <= 80
    assert re.search(r"clips +UAR +WA +macro-F1 +kappa +dev UAR", terminal(cross_validate(run)))
    without(run, (1, 3))
    write_json(
        run.trial(Trial(1, 3)).claim().end, {"outcome": "failed", "error": "[/red] [bold] oops " + "x" * 5000, "host": "n1"}
    )
    shown = terminal(cross_validate(run))
    assert "failed: [/red] [bold] oops" in shown and len(shown.splitlines()) < 35


def test_column_heads_tell_classes_apart() -> None:
    assert shorten_names(["anger", "anxiety", "boredom"]) == ["ang", "anx", "bor"]
    assert shorten_names(["happy", "happy_high", "no"]) == ["happy", "happy_", "no"]
