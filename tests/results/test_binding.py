"""What a report counts is what the run planned: whatever was changed, exchanged or copied since is refused, and named."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from made import as_of_before, remark, replan, rewrite

from ser_hpc.core.atomic_io import read_json, read_sealed, write_json, write_sealed
from ser_hpc.core.errors import UserError
from ser_hpc.report import write_report
from ser_hpc.results.plan_checks import LEGACY_NOTE
from ser_hpc.results.report_json import to_json
from ser_hpc.run import predictions
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import RunDir, Trial

MakeRun = Callable[..., RunDir]
FIRST = Trial(0, 0)


def plan_with(change: Callable[[dict[str, Any]], None]) -> Callable[[RunDir], None]:
    """The plan changed, and sealed again: the launcher of before, or a person's script, wrote another one."""

    def plant(run: RunDir) -> None:
        plan = read_sealed(run.plan)
        change(plan)
        write_sealed(run.plan, plan)

    return plant


def drop_fold(plan: dict[str, Any]) -> None:
    plan["folds"].pop()
    plan["trials"] = [trial for trial in plan["trials"] if trial["fold"] != len(plan["folds"])]


def drop_seed(plan: dict[str, Any]) -> None:
    plan["seeds"].remove(1)
    plan["trials"] = [trial for trial in plan["trials"] if trial["seed"] != 1]


def predictions_with(change: Callable[[list[Prediction]], list[Prediction]]) -> Callable[[RunDir], None]:
    """The predictions changed, and their marker too: as a trial over other data would have left them."""
    return lambda run: rewrite(run, FIRST, change)


def exchange(found: list[Prediction], name: str, unlike: str) -> list[Prediction]:
    """Two test clips that differ in `unlike` exchange what they say under `name`."""
    one = next(p for p in found if p.part == "test")
    other = next(p for p in found if p.part == "test" and getattr(p, unlike) != getattr(one, unlike))
    swapped = {id(one): replace(one, **{name: getattr(other, name)}), id(other): replace(other, **{name: getattr(one, name)})}
    return [swapped.get(id(p), p) for p in found]


def copied_seed(run: RunDir) -> None:
    for fold in range(3):
        shutil.rmtree(run.trial(Trial(1, fold)).path)
        shutil.copytree(run.trial(Trial(0, fold)).path, run.trial(Trial(1, fold)).path)


def odds(*of: float) -> Callable[[list[Prediction]], list[Prediction]]:
    return lambda found: [replace(found[0], probabilities=dict(zip(found[0].probabilities, of, strict=False))), *found[1:]]


def settings_with(**changes: Any) -> Callable[[RunDir], None]:
    def plant(run: RunDir) -> None:
        tree = yaml.safe_load(run.settings.read_text())
        tree["train"] |= changes
        run.settings.write_text(yaml.safe_dump(tree))

    return plant


def labels_with(old: str, new: str) -> Callable[[RunDir], None]:
    return lambda run: run.labels.write_text(run.labels.read_text().replace(old, new)) and None


PLANTED: dict[str, tuple[Callable[[RunDir], None], str]] = {
    "truths exchanged": (
        predictions_with(lambda f: exchange(f, "truth", "truth")),
        "not the planned one.*other speakers or true",
    ),
    "speakers exchanged": (
        predictions_with(lambda f: exchange(f, "speaker", "speaker")),
        "not the planned one.*not the same ones",
    ),
    "a clip renamed": (
        predictions_with(lambda f: [*f[:-1], replace(f[-1], utterance_id="other")]),
        "the test part is not the planned one.*not the same ones",
    ),
    "a speaker moved": (
        predictions_with(lambda f: [replace(p, speaker="01") if p.speaker == "00" else p for p in f]),
        "the test part is not the planned one; .*nothing of speaker 00",
    ),
    "predicted is not the most probable": (
        predictions_with(lambda f: [replace(f[0], predicted="sad" if f[0].predicted != "sad" else "angry"), *f[1:]]),
        "emodb-.*: predicted is .*, but .* is more probable",
    ),
    "probabilities are empty": (predictions_with(lambda f: [replace(f[0], probabilities={}), *f[1:]]), "are of no class"),
    "probabilities are of another class": (
        predictions_with(lambda f: [replace(f[0], probabilities=f[0].probabilities | {"bored": 0.0}), *f[1:]]),
        "its probabilities are of angry, bored",
    ),
    "probabilities are none": (predictions_with(odds(2.0, -1.0, 0.0, 0.0)), "its probabilities are none: angry 2.0"),
    "a fold dropped from the plan": (
        plan_with(drop_fold),
        r"do not name the same folds \(fold 2\)",
    ),
    "a seed dropped from the plan": (
        plan_with(drop_seed),
        r"plan.json and .* do not name the same seeds \(seed 1",
    ),
    "the plan of another run": (plan_with(lambda plan: plan.update(run="e" * 64)), "is the plan of another run"),
    "the plan of other shards": (plan_with(lambda plan: plan.update(fingerprint="e" * 64)), "the plan of other shards"),
    "seed 1 a copy of seed 0": (copied_seed, r"seed_1/fold_0/done\.json is the marker of seed 0 fold 0: the folder was copied"),
    "a fold of a run with other settings": (
        lambda run: remark(run.trial(FIRST), run="0" * 64),
        "is the marker of seed 0 fold 0 of another run",
    ),
    "settings edited": (settings_with(lr=1.0), r"settings\.yaml was changed after the run was made: its settings"),
    "a setting that is none": (settings_with(lr="fast"), r"settings\.yaml was changed after the run was made"),
    "labels edited": (labels_with("- sad", "- bad"), r"labels\.yaml was changed after the run was made: its classes"),
    "labels in another order": (
        labels_with("- angry\n- happy", "- happy\n- angry"),
        r"labels\.yaml was changed .* classes",
    ),
    "the identity gone": (lambda run: run.identity.unlink(), r"identity\.json is missing"),
    "the labels gone": (lambda run: run.labels.unlink(), r"labels\.yaml: cannot be read"),
    "a checksum gone": (lambda run: write_json(run.plan, read_sealed(run.plan)), "it has no checksum"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_does_not_fit_is_refused_and_named(make_run: MakeRun, name: str) -> None:
    """At the report, whoever made it fit otherwise; nothing is written."""
    plant, message = PLANTED[name]
    run = make_run(num_folds=3, seeds=(0, 1))
    plant(run)
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        write_report(run)
    assert not run.report_json.exists()


def test_not_a_number_among_probabilities_is_refused(make_run: MakeRun) -> None:
    """Our writer refuses it; another may have written it."""
    run = make_run(num_folds=3)
    path = run.trial(FIRST).current.predictions
    path.write_text(path.read_text().replace('"angry": 1.0', '"angry": NaN', 1))
    as_of_before(run)
    with pytest.raises(UserError, match="its probabilities are none: angry nan"):
        write_report(run)


def test_a_plan_of_before_more_seeds_were_trained_is_refused(make_run: MakeRun) -> None:
    """Plan and identity fit each other, and both have forgotten a seed that is there, trained."""
    run = make_run(num_folds=3, seeds=(0, 1))
    plan = read_sealed(run.plan)
    drop_seed(plan)
    replan(run, plan)
    with pytest.raises(UserError, match=r"holds trials that its plan does not ask for: seed 1 fold 0, seed 1 fold 1"):
        write_report(run)


def test_copies_beside_a_trials_attempts_are_no_attempts(make_run: MakeRun) -> None:
    run = make_run(num_folds=3)
    before = to_json(write_report(run))
    attempt = run.trial(FIRST).current.path
    shutil.copytree(attempt, attempt.with_name("attempt_0001.bak"))
    shutil.copytree(run.path / "seed_0", run.path / "seed_0_backup")
    assert to_json(write_report(run)) == before


ODD = ['{"format": 1}', '{"format": 1, "trials": [], "seeds": null, "folds": null}', "[]", "null", '{"format": 1, "trials": 5}']


@pytest.mark.parametrize("content", ODD)
def test_whatever_a_plan_of_before_says_is_answered_in_words(content: str, make_run: MakeRun) -> None:
    run = as_of_before(make_run(num_folds=3))
    run.plan.write_text(content)
    with pytest.raises(UserError):
        write_report(run)


@pytest.mark.parametrize("change", [{"attempt": 1e400}, {"seconds": "x"}, {"best_dev_uar": "high"}, {"best_epoch": None}])
def test_whatever_a_marker_of_before_says_is_answered_in_words(change: dict[str, Any], make_run: MakeRun) -> None:
    run = as_of_before(make_run(num_folds=3))
    done = run.trial(FIRST).done
    done.write_text(json.dumps(read_json(done) | change))
    with pytest.raises(UserError):
        write_report(run)


@pytest.mark.parametrize("change", [{"speaker": None}, {"probabilities": None}, {"truth": 3}])
def test_whatever_a_prediction_of_before_says_is_answered_in_words(change: dict[str, Any], make_run: MakeRun) -> None:
    run = as_of_before(make_run(num_folds=3))
    path = run.trial(FIRST).current.predictions
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | change), *lines[1:]]) + "\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl:1 is not a prediction"):
        write_report(run)


def test_settings_of_the_cluster_may_be_edited(make_run: MakeRun) -> None:
    """Where a run trains is not what it is."""
    run = make_run(num_folds=3)
    tree = yaml.safe_load(run.settings.read_text())
    tree["cluster"]["partition"] = "other"
    run.settings.write_text(yaml.safe_dump(tree))
    assert not write_report(run).missing


def test_a_run_of_before_is_reported_with_a_word_on_what_could_not_be_checked(make_run: MakeRun) -> None:
    run = make_run(num_folds=3)
    bound = to_json(write_report(run))
    before = to_json(write_report(as_of_before(run)))
    assert LEGACY_NOTE in before["notes"] and LEGACY_NOTE not in bound["notes"]
    # It has no digests, by which a panel and its clips are found and scores are counted.
    others = {"notes": [], "without_listening": None, "groups_unseen": None}
    assert before | others == bound | others


def test_conditions_that_differed_between_trials_are_listed(make_run: MakeRun) -> None:
    run = make_run(num_folds=3)
    same = {"versions": {"torch": "2.11.0", "transformers": "5.17.0"}, "device": "cpu", "ranks": 2, "budget_s": 80.0}
    others = [
        {},
        {},
        {"versions": {"torch": "2.11.1", "transformers": "5.17.0"}, "device": "H100", "ranks": 4, "budget_s": 8.0},
    ]
    for fold, other in enumerate(others):
        write_json(run.trial(Trial(0, fold)).current.attempt, same | other)
    found = [note for note in write_report(run).notes if note.startswith("The trials were trained")]
    assert [note.split(" (")[0] for note in found] == [
        "The trials were trained under different versions of torch",
        "The trials were trained on different devices",
        "The trials were trained on different numbers of ranks",
        "The trials were trained with different memory budgets, in seconds of audio",
    ]
    assert "(2.11.0: seed 0 fold 0, seed 0 fold 1; 2.11.1: seed 0 fold 2)" in found[0]


@pytest.mark.parametrize(("device", "told"), [("CPU", True), ("NVIDIA H100", False)])
def test_numbers_of_threads_that_differed_are_listed_where_they_computed(make_run: MakeRun, device: str, told: bool) -> None:
    """Threads of a CPU share out its sums; those beside a GPU do not compute."""
    run = make_run(num_folds=3)
    for fold, threads in enumerate((2, 2, 1)):
        write_json(run.trial(Trial(0, fold)).current.attempt, {"device": device, "threads": threads})
    found = [note for note in write_report(run).notes if "numbers of threads (1: seed 0 fold 2; 2: " in note]
    assert bool(found) == told


def edited(text: str, chance: random.Random) -> str:
    """One small edit, as a person or a script makes it: a digit, a word, a line."""
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    kind = chance.choice(["digit", "digit", "word", "word", "swap", "drop", "repeat", "letter"])
    if kind == "digit" and (digits := [m.start() for m in re.finditer(r"\d", text)]):
        place = chance.choice(digits)
        return text[:place] + str((int(text[place]) + chance.randrange(1, 10)) % 10) + text[place + 1 :]
    if kind == "word" and re.search(r"\b[A-Za-z_]\w+", text):
        words = sorted(set(re.findall(r"\b[A-Za-z_]\w+", text)))
        one, other = chance.choice(words), chance.choice(words)
        places = [m.start() for m in re.finditer(rf"\b{re.escape(one)}\b", text)]
        place = chance.choice(places)
        return text[:place] + other + text[place + len(one) :]
    if kind == "swap":
        other_line = chance.randrange(len(lines))
        lines[at], lines[other_line] = lines[other_line], lines[at]
    elif kind == "drop":
        del lines[at]
    elif kind == "repeat":
        lines.insert(at, lines[at])
    elif kind == "letter" and text:
        place = chance.randrange(len(text))
        return text[:place] + chance.choice("abcxyz0{}[],.:\"' ") + text[place + 1 :]
    return "\n".join(lines)


def test_300_small_edits_never_change_a_reported_number_without_a_word(make_run: MakeRun) -> None:
    """Of plan, identity, markers, predictions, settings and labels: refused, or noted, or every number stays."""
    run = make_run(num_folds=3, seeds=(0, 1), each=2, classes=("angry", "happy", "sad"))
    before = to_json(write_report(run))
    files = [run.plan, run.identity, run.settings, run.labels]
    files += [
        path for pattern in ("done.json", "*/predictions.jsonl") for path in sorted(run.path.glob(f"seed_*/fold_*/{pattern}"))
    ]
    chance = random.Random(20261126)
    outcomes = {"refused": 0, "noted": 0, "unchanged": 0}
    for number in range(300):
        path = files[number % 4] if number % 2 else chance.choice(files)
        text = path.read_text()
        path.write_text(edited(text, chance))
        try:
            after = to_json(write_report(run))
            noted = after["notes"] != before["notes"] or after["missing"] != before["missing"]
            assert noted or json.dumps(after) == json.dumps(before), f"edit {number} of {path}: {path.read_text()[:2000]}"
            outcomes["noted" if noted else "unchanged"] += 1
        except UserError:
            outcomes["refused"] += 1
        path.write_text(text)
    assert to_json(write_report(run)) == before
    assert outcomes["refused"] > 200, outcomes


def test_edits_are_small_but_real() -> None:
    chance = random.Random(0)
    text = json.dumps({"a": [1, 2, 3], "b": "word"}, indent=1)
    changed = [edited(text, chance) != text for _ in range(200)]
    assert sum(changed) > 150


def test_predictions_know_their_own_file(tmp_path: Path) -> None:
    """The hash that a marker holds is of the bytes on the disk."""
    path = tmp_path / "predictions.jsonl"
    made = [Prediction("c", "u", "sé", "test", "a", "a", {"a": 1.0})]
    sha256 = predictions.write_predictions(path, made)
    assert predictions.read_predictions(path, sha256) == made
    path.write_text(path.read_text().replace("sé", "s"))
    with pytest.raises(UserError, match="was changed after its trial had written it"):
        predictions.read_predictions(path, sha256)
    assert read_json(path)["speaker"] == "s"
