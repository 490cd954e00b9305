"""Two systems on the same clips: what a difference is, when chance would give it, and what may not be compared."""

from __future__ import annotations

import csv
import json
import re
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT, text
from made import as_of_before, replan

from ser_hpc import compare as command
from ser_hpc.core.errors import UserError
from ser_hpc.results import comparison
from ser_hpc.results.intervals import difference_interval, mean_uar
from ser_hpc.results.systems import System, _read_table, count_systems, read_systems
from ser_hpc.run.predictions import Prediction, read_predictions
from ser_hpc.run.run_dir import RunDir, Trial

MakeRun = Callable[..., RunDir]


def drawn(rng: np.random.Generator, speakers: int, seeds: int, logit: np.ndarray | float) -> np.ndarray:
    """Counts (seeds, speakers, 4, 4) of ten clips a class; `logit`: of being right, (speakers, 1) or a number."""
    hits = rng.binomial(10, 1 / (1 + np.exp(-np.broadcast_to(logit, (speakers, 4)))), (seeds, speakers, 4))
    wrong = np.roll(np.eye(4, dtype=np.int64), 1, axis=1)
    return hits[..., None] * np.eye(4, dtype=np.int64) + (10 - hits)[..., None] * wrong


def test_the_shares_of_speakers_add_up_to_the_pooled_uar() -> None:
    """With other numbers of clips for each speaker and class, and a class that nobody has."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (3, 7, 5, 5))
    clips = counts[0].sum(-1)
    counts = np.stack([_with_row_sums(rng, clips) for _ in range(3)])
    counts[:, :, 2] = 0
    shares = comparison.shares_of_uar(counts)
    assert shares.sum() == pytest.approx(float(mean_uar(counts.sum(1))))


def _with_row_sums(rng: np.random.Generator, clips: np.ndarray) -> np.ndarray:
    return np.stack([[rng.multinomial(n, np.full(5, 0.2)) for n in row] for row in clips])


def test_the_exact_test_is_all_exchanges_of_two_systems() -> None:
    """As Fisher's definition: of all ways to exchange the two speaker by speaker, those that differ at least as much."""
    rng = np.random.default_rng(1)
    ours, theirs = (drawn(rng, 7, 2, 0.3 + shift) for shift in (0.25, 0.0))
    observed = abs(float(mean_uar(ours.sum(1)) - mean_uar(theirs.sum(1))))
    as_large = []
    for exchanged in product((False, True), repeat=7):
        mask = np.array(exchanged)[None, :, None, None]
        one, other = np.where(mask, theirs, ours), np.where(mask, ours, theirs)
        as_large.append(abs(float(mean_uar(one.sum(1)) - mean_uar(other.sum(1)))) >= observed - 1e-12)
    assert comparison.sign_flip_test(ours, theirs) == pytest.approx(np.mean(as_large))


def test_many_speakers_are_tested_by_drawing_signs() -> None:
    """The same as exactly, to the error of drawing; a p of 0 does not occur."""
    rng = np.random.default_rng(2)
    ours, theirs = drawn(rng, 20, 1, 0.3), drawn(rng, 20, 1, 0.0)
    exact = comparison.sign_flip_test(ours, theirs)
    nobody = np.zeros_like(ours[:, :1])
    drawn_p = comparison.sign_flip_test(*(np.concatenate([of, nobody], axis=1) for of in (ours, theirs)))
    assert exact is not None and drawn_p is not None and drawn_p == pytest.approx(exact, abs=0.006)
    assert comparison.sign_flip_test(drawn(rng, 40, 1, 3.0), drawn(rng, 40, 1, -3.0)) == pytest.approx(1 / 100_001)


def test_thousands_of_speakers_are_tested_in_little_memory() -> None:
    """Ten million signs and more; the arrays of one test stay under a hundred megabytes."""
    rng = np.random.default_rng(6)
    ours, theirs = (rng.integers(0, 3, (1, 3000, 2, 2)) for _ in range(2))
    tracemalloc.start()
    assert comparison.sign_flip_test(ours, theirs) is not None
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_equal_systems_are_told_apart_as_often_as_the_test_says() -> None:
    """And a true difference nearly always."""
    rng, runs, alarms, found = np.random.default_rng(3), 300, 0, 0
    for _ in range(runs):
        who = rng.normal(0, 0.5, (10, 1))
        p = comparison.sign_flip_test(drawn(rng, 10, 3, who), drawn(rng, 10, 3, who))
        better = comparison.sign_flip_test(drawn(rng, 10, 3, who + 0.5), drawn(rng, 10, 3, who))
        assert p is not None and better is not None
        alarms, found = alarms + (p <= 0.05), found + (better <= 0.05)
    assert 0.01 <= alarms / runs <= 0.09 and found / runs > 0.9


def test_few_speakers_are_not_tested() -> None:
    rng = np.random.default_rng(4)
    assert comparison.sign_flip_test(drawn(rng, 5, 1, 3.0), drawn(rng, 5, 1, -3.0)) is None


def test_holms_correction() -> None:
    """The example of the method: multiplied by how many are left, and never below a smaller one's."""
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.9, 0.8]) == [1.0, 1.0] and comparison.holm([]) == []


def test_what_is_hard_for_both_cancels_in_the_interval() -> None:
    """Speakers that differ widely make a score uncertain, and not the difference of two systems."""
    rng = np.random.default_rng(5)
    who = rng.normal(0, 1.5, (12, 1))
    paired = difference_interval(drawn(rng, 12, 3, who + 0.4), drawn(rng, 12, 3, who), None)
    others = difference_interval(drawn(rng, 12, 3, who + 0.4), drawn(rng, 12, 3, rng.permutation(who)), None)
    assert paired.bounds is not None and others.bounds is not None and paired.bounds[0] > 0
    assert np.diff(paired.bounds) < 0.6 * np.diff(others.bounds)


def as_table(run: RunDir, path: Path, **changes: str) -> Path:
    """Write a run's test predictions as another tool would."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "utterance", "truth", "predicted", "score"])
        for trial in run.trials():
            for p in read_predictions(run.trial(trial).current.predictions):
                if p.part == "test":
                    writer.writerow([trial.seed, p.utterance_id, p.truth, changes.get(p.utterance_id, p.predicted), 0.5])
    return path


def test_a_run_and_its_own_table_do_not_differ(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(seeds=(0, 1))
    table = as_table(run, tmp_path / "other.csv")
    assert command.main([str(run.path), str(table), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (difference,) = found["differences"]
    assert difference["difference"] == 0 and difference["p"] == 1 and difference["ci95"] == [0, 0]
    assert found["systems"][0]["pooled_uar"] == found["systems"][1]["pooled_uar"]
    said = text(ROOT / "docs" / "numbers.md").partition("| `format` |")[2].partition("\n\n")[0]
    keys = {*found, *found["systems"][0], *found["systems"][0]["trials"][0], *difference} - {"format"}
    assert not [key for key in keys if f"`{key}`" not in said], "docs/numbers.md says what each key is"


def test_it_is_shown_for_80_columns(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runs = [make_run(seeds=(0, 1), accuracy=accuracy, name=f"of_{10 * accuracy:.0f}") for accuracy in (0.8, 0.5)]
    table = as_table(runs[1], tmp_path / "other.csv")
    assert command.main([*(str(run.path) for run in runs), str(table)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "by Holm" in said and "A minus B: +" in said and "other.csv" in said and "smallest difference" in said


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("utterance,truth\n", "has no column predicted"),
        ("utterance,truth,predicted\nnobody,angry,sad\n", "line 2: 'nobody' is no test clip of"),
        ("utterance,truth,predicted\n00_angry_0,angry,cross\n", "line 2: predicted is 'cross', not one of angry, happy"),
        ("utterance,truth,predicted\n00_angry_0,sad,sad\n", "line 2: 00_angry_0 is angry in"),
        ("utterance,truth,predicted\n00_angry_0,angry,sad\n00_angry_0,angry,sad\n", "line 3: 00_angry_0 a second time"),
        ("utterance,truth,predicted\n00_angry_0,angry,sad\n", "lacks 239 of"),
        ("utterance,truth,predicted\n", "lacks 240 of"),
        ("utterance,truth,predicted,seed\n00_angry_0,angry,sad,x\n", "line 2: seed is 'x', no whole number"),
    ],
)
def test_a_table_that_is_not_of_these_clips_is_refused(make_run: MakeRun, tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "other.csv").write_text(lines)
    with pytest.raises(UserError, match=words):
        read_systems([make_run().path, tmp_path / "other.csv"])


def test_what_cannot_be_compared_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """Other folds, other classes, a run that is not finished, one system, no run at all."""
    run, other, classes = make_run(), make_run(num_folds=4, name="four"), make_run(classes=("angry", "sad"), name="two")
    with pytest.raises(UserError, match="have other folds: train of fold 0"):
        read_systems([run.path, other.path])
    with pytest.raises(UserError, match="tells angry, happy, neutral, sad apart"):
        read_systems([run.path, classes.path])
    with pytest.raises(UserError, match="given twice"):
        read_systems([run.path, run.path])
    with pytest.raises(UserError, match="cannot be compared; give two"):
        command.main([str(run.path)])
    table = as_table(run, tmp_path / "a.csv")
    with pytest.raises(UserError, match="none of these is a run directory"):
        read_systems([table, as_table(run, tmp_path / "b.csv")])
    with pytest.raises(UserError, match="does not exist"):
        read_systems([run.path, tmp_path / "nothing"])
    unfinished = make_run(name="half")
    unfinished.trial(unfinished.trials()[0]).done.unlink()
    with pytest.raises(UserError, match="1 of 5 trials is missing"):
        read_systems([run.path, unfinished.path])


HEAD, ROW = "utterance,truth,predicted\n", "00_angry_0,angry,sad\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEAD + "00_angry_0,angry\n", "line 2: predicted is '', not one of"),  # cut off
        (HEAD + "\n\n" + ROW + '"no\nbody",angry,sad\n', r"line 6: 'no\\nbody' is no test clip"),
        (HEAD + '"' + ROW + ROW * 3000, r"line 3002: '00_angry_0,angry,sad\\n.{1,60}\.\.\.' is no test clip"),
        ("utterance;truth;predicted\n", "its columns, between commas, are 'utterance;truth;predicted'"),
        ("\x1b[2J," + "x" * 9000 + "\n", r"are '\\x1b\[2J', 'x{60}\.\.\.'$"),
        ("utterance,truth,predicted,predicted\n", "has the column predicted twice"),
        (
            "utterance,truth,predicted,seed\n00_angry_0,angry,sad," + "1" * 5000 + "\n",
            "seed is '1{60}...', no whole number of up",
        ),
    ],
)
def test_a_table_that_is_none_is_refused_in_few_words(make_run: MakeRun, tmp_path: Path, content: str, words: str) -> None:
    """With the line as an editor counts it, and nothing of it that would clear the screen or fill it."""
    (tmp_path / "other.csv").write_text(content)
    with pytest.raises(UserError, match=words) as refused:
        read_systems([make_run().path, tmp_path / "other.csv"])
    assert len(str(refused.value)) < 600 and "\x1b" not in str(refused.value)


def test_blanks_around_names_and_cells_do_not_matter(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(seeds=(0, 1))
    table = as_table(run, tmp_path / "other.csv")
    table.write_text("\ufeff" + table.read_text().replace(",", " , "))
    ours, theirs = (system.tested for system in read_systems([run.path, table]))
    assert {t: sorted((p.utterance_id, p.predicted) for p in of) for t, of in ours.items()} == {
        t: sorted((p.utterance_id, p.predicted) for p in of) for t, of in theirs.items()
    }


def test_an_id_of_two_corpora_is_asked_for_with_its_corpus(make_run: MakeRun, tmp_path: Path) -> None:
    one, other = (
        System("run", {"classes": ["a", "b"]}, {Trial(0, 0): [_clip(c, "b") for c in names]}) for names in ("c", "cd")
    )
    table = tmp_path / "other.csv"
    table.write_text(HEAD + "u1,a,b\n")
    assert len(_read_table(table, one).tested[Trial(0, 0)]) == 1
    with pytest.raises(UserError, match="line 2: several corpora have a clip u1; write CORPUS/u1"):
        _read_table(table, other)
    table.write_text(HEAD + "c/u1,a,b\nd/u1,a,a\n")
    assert {p.corpus: p.predicted for p in _read_table(table, other).tested[Trial(0, 0)]} == {"c": "b", "d": "a"}


def _clip(corpus: str, predicted: str) -> Prediction:
    return Prediction(corpus, "u1", "anna", "test", "a", predicted, {})


def test_runs_of_earlier_versions_are_compared_with_tables_alone(make_run: MakeRun, tmp_path: Path) -> None:
    old = as_of_before(make_run(name="old"))
    assert len(read_systems([old.path, as_table(old, tmp_path / "other.csv")])) == 2
    with pytest.raises(UserError, match=r"old: planned by an earlier version, .* with tables of predictions"):
        read_systems([make_run().path, old.path])


def test_other_names_for_one_speaker_are_refused(make_run: MakeRun) -> None:
    """The folds may be of the same clips all the same."""
    run, merged = make_run(), make_run(name="merged", speaker_aliases={"emodb/00": "emodb/01"})
    plan = merged.read_plan()
    for part in (fold[name] for fold in plan["folds"] for name in ("train", "dev", "test")):
        part["speakers"] = [name for name in part["speakers"] if name != "00"]
    replan(merged, plan)
    systems = read_systems([run.path, merged.path])
    with pytest.raises(UserError, match=r"count other speakers, though of the same clips: emodb/00;.*speaker_aliases"):
        count_systems(systems)


def test_what_cannot_be_told_is_left_out(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No difference of recalls without clips, and no smallest difference where no speaker differs: not a 0 for either."""
    everybody = {f"{speaker:02}": "sad" for speaker in range(10)}
    run, worse = make_run(absent=everybody), make_run(absent=everybody, accuracy=0.3, name="worse")
    assert command.main([str(run.path), str(worse.path), "--json"]) == 0
    (difference,) = json.loads(capsys.readouterr().out)["differences"]
    assert difference["recall"]["sad"] is None and difference["recall"]["angry"] > 0 and difference["smallest_seen"] > 0
    assert command.main([str(run.path), str(worse.path)]) == 0
    assert "p = <" not in capsys.readouterr().out
    assert command.main([str(run.path), str(as_table(run, tmp_path / "same.csv"))]) == 0
    said = capsys.readouterr().out
    assert "p = 1.000." in said and "to be seen 0.0" not in said


def test_many_systems_stay_readable_and_what_holm_makes_impossible_is_said(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No number is broken over lines, every system has its column; ten speakers cannot tell 28 pairs apart at 5 %."""
    monkeypatch.setenv("COLUMNS", "80")
    classes = ("angry", "disappointment", "neutral")
    runs = [make_run(seeds=(0, 1), accuracy=0.3 + 0.08 * i, classes=classes, name=f"of_{i}") for i in range(8)]
    assert command.main([str(run.path) for run in runs]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    folds = [re.findall(r"\d\.\d{3}", line) for line in re.findall(r"^ {6,}[0-4] .*", said, re.M)]
    assert [len(scores) for scores in folds] == [7] * 5 + [3] * 5  # the eighth has room for its spread
    assert len(re.findall(r"^ disappointment +60(?: +\d\.\d{3})+$", said, re.M)) == 2
    words = " ".join(said.split())
    assert "With 10 speakers and so many pairs no corrected p can be below .055" in words
    assert command.main([str(run.path) for run in runs[:3]]) == 0
    few = " ".join(capsys.readouterr().out.split())
    assert "no corrected p" not in few and "for 3 pairs" in few and few.count("(by Holm") == 3
