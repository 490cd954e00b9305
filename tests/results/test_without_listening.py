"""Traps in a corpus are named by its report: shortcuts, persons who are their emotion, test clips that were scored often."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from small import planned

from ser_hpc.core.atomic_io import read_json, write_sealed
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.launchers import trial_checks
from ser_hpc.report import main
from ser_hpc.results import run_panel, score_ledger
from ser_hpc.results.score_ledger import enter_score, ordinal
from ser_hpc.run.experiment import reopen_experiment
from ser_hpc.run.predictions import Prediction, write_predictions
from ser_hpc.run.run_dir import RunDir
from ser_hpc.run.shared_folder import SharedFolder
from ser_hpc.shards import shortcut_table
from ser_hpc.shards.storage import Url
from ser_hpc.shards.write import pack

CLASSES = ("angry", "happy", "sad")
Sound = Callable[[int, int, np.random.Generator], np.ndarray]
Report = Callable[..., str]


def hum(
    seconds: float = 0.5, level: float = 0.1, noise: float = 0.003, zeros: float = 0.0, pause: float = 0.0, click: float = 0.0
) -> Sound:
    """A voice that is the same for all classes, over noise; before it a pause or a click, behind it zeros."""

    def make(speaker: int, emotion: int, rng: np.random.Generator) -> np.ndarray:
        time = np.arange(int(seconds * 16_000)) / 16_000
        voice = level * np.sin(2 * np.pi * (100 + 20 * speaker) * time) * (np.sin(2 * np.pi * 4 * time) > 0)
        voice[:800] += click * np.sin(2 * np.pi * 3000 * time[:800])
        voice = np.concatenate([np.zeros(int(pause * 16_000)), voice])
        return np.concatenate([voice + noise * rng.standard_normal(len(voice)), np.zeros(int(zeros * 16_000))])

    return make


def corpus(folder: Path, sound: Sound, class_of: Callable[[int, int], int], name: str = "mini", **more: Any) -> Path:
    """Packed clips of 6 speakers, 12 of each. `class_of`: of a speaker and a take; `more`: columns, made likewise."""
    (folder / "wav").mkdir(parents=True)
    rng, found = np.random.default_rng(0), []
    for speaker in range(6):
        for take in range(12):
            emotion, path = class_of(speaker, take), folder / "wav" / f"s{speaker}-{take}.wav"
            soundfile.write(path, sound(speaker, emotion, rng), 16_000)
            columns = {column: of(speaker, emotion) for column, of in more.items()}
            found.append(Utterance(name, path.stem, path, f"s{speaker}", CLASSES[emotion], **columns))
    pack(found, folder / "shards", workers=1)
    return folder / "shards"


def balanced(speaker: int, take: int) -> int:
    return take % 3


def trained(run: RunDir, accuracy: float = 0.6) -> RunDir:
    """The run with predictions of every trial, as if it had been trained."""
    rng = np.random.default_rng(0)
    experiment = reopen_experiment(run)
    metadata = experiment.index.metadata
    for trial in run.trials():
        folder, made = run.trial(trial), []
        for part in ("dev", "test"):
            for position in getattr(experiment.folds.folds[trial.fold], part).positions.tolist():
                truth = CLASSES[experiment.targets[position]]
                guess = truth if rng.random() < accuracy else str(rng.choice(CLASSES))
                who = metadata.corpus[position], metadata.utterance_id[position], metadata.speaker[position]
                made.append(Prediction(*who, part, truth, guess, {name: float(name == guess) for name in CLASSES}))
        folder.path.mkdir(parents=True, exist_ok=True)
        digest = write_predictions(folder.attempt(1).predictions, made)
        marker = {"attempt": 1, "best_epoch": 0, "seconds": 1.0, "predictions_sha256": digest}
        write_sealed(folder.done, marker | {"run": experiment.identity.digest, "seed": trial.seed, "fold": trial.fold})
    return run


def folds(*more: str) -> tuple[str, ...]:
    return "folds.protocol=speaker_groups", "folds.count=3", *more


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """`report(run, *options)`: the screen of the command."""

    def call(run: RunDir, *options: str) -> str:
        capsys.readouterr()
        main([str(run.path), *options])
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus without a trap."""
    return corpus(tmp_path_factory.mktemp("plain"), hum(), balanced)


def by_class(values: Sequence[float], **more: float) -> Callable[[str], Sound]:
    """A sound in which one thing goes with the class."""
    return lambda name: lambda speaker, emotion, rng: hum(**{name: values[emotion]} | more)(speaker, emotion, rng)


@pytest.mark.parametrize(
    ("sound", "name", "least"),
    [
        (by_class([0.001, 0.004, 0.016])("noise"), "noise floor", 0.5),  # many columns, few clips
        (by_class([0.03, 0.1, 0.3], noise=0.0003)("level"), "level", 0.8),
        (by_class([0.4, 0.5, 0.6])("seconds"), "duration", 0.8),
        (by_class([0.05, 0.10, 0.15])("zeros"), "digital zeros", 0.8),
        (by_class([0.0, 0.05, 0.10], noise=0.0003)("pause"), "silence at edges", 0.8),
        (by_class([0.001, 0.01, 0.1])("click"), "first 200 ms", 0.6),
    ],
    ids=["noise", "level", "duration", "zeros", "pause", "click"],
)
def test_a_planted_shortcut_is_named(sound: Sound, name: str, least: float, tmp_path: Path, report: Report) -> None:
    run = trained(planned(tmp_path / "runs", corpus(tmp_path, sound, balanced), *folds()), 0.1)
    screen = report(run)
    told = read_json(run.report_json)["without_listening"]
    rows = told["panel"]
    assert rows[name.replace(" ", "_")]["uar"] > least and rows[name.replace(" ", "_")]["control"] < 0.55
    assert "Without listening: " in screen and told["meaning"] in run.report_md.read_text()
    assert "is not above what is reached without listening" in run.report_md.read_text().split("## What")[0]
    if name == "digital zeros":
        assert "48 of 72 clips begin or end in more than 50 ms of digital zeros" in run.report_md.read_text()


def test_a_text_that_goes_with_the_class_is_named(tmp_path: Path, report: Report) -> None:
    shards = corpus(tmp_path, hum(), balanced, text_id=lambda speaker, emotion: f"t{emotion}")
    run = trained(planned(tmp_path / "runs", shards, *folds()))
    assert "Without listening: text 1.000" in report(run)
    assert "72 of 72 test clips say a text that training has too; from the text alone, UAR 1.000" in run.report_md.read_text()


def test_a_corpus_whose_speakers_are_their_emotion(tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """As URDU: disjoint speakers do not help where each has one emotion, and a microphone that goes with it."""
    shards = corpus(tmp_path, by_class([0.001, 0.004, 0.016])("noise"), lambda speaker, take: speaker % 3)
    run = trained(planned(tmp_path / "runs", shards, "folds.protocol=leave_one_speaker_out", "folds.count=6"))
    monkeypatch.setattr(trial_checks, "_model", lambda model, models: (None, []))
    screen = report(run)
    assert "100% of the test clips are of their speaker's most frequent class" in " ".join(screen.split())
    assert "by the speakers" in screen
    assert any("emotion and person are nearly one" in note for note in trial_checks.check_trials(reopen_experiment(run)))
    assert "it tells who speaks, not how" in run.report_md.read_text()


def test_a_corpus_without_a_trap_says_nothing_above_chance(plain: Path, tmp_path: Path, report: Report) -> None:
    run = trained(planned(tmp_path / "runs", plain, *folds()))
    assert "Without listening: nothing above chance (0.333)." in report(run)
    told = read_json(run.report_json)
    assert told["warnings"] == [warning for warning in told["warnings"] if "under 10 clips" in warning]
    assert told["without_listening"]["panel"]["duration"] == {
        "uar": None,
        "ci95": None,
        "ci95_reason": "no information",
        "control": None,
    }
    assert "same class priors" in run.report_md.read_text()


def test_it_is_measured_once_for_all_runs_on_the_same_folds(
    plain: Path, tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the shards, whatever folder the runs are in; the sound is not read again, by no other folds either."""
    shards = Path(shutil.copytree(plain, tmp_path / "shards", ignore=shutil.ignore_patterns("shortcuts", "scored")))
    first = trained(planned(tmp_path / "runs", shards, *folds()))
    assert "Scoring what can be told" in report(first)
    monkeypatch.setattr(shortcut_table, "_measure", None)
    other = trained(planned(tmp_path / "elsewhere", shards, *folds("train.lr=1e-4")))
    assert "Scoring what can be told" not in report(other)
    assert (
        read_json(other.report_json)["without_listening"]["panel"] == read_json(first.report_json)["without_listening"]["panel"]
    )
    more = trained(planned(tmp_path / "elsewhere", shards, "folds.protocol=leave_one_speaker_out", "folds.count=6"))
    assert "Scoring what can be told" in report(more)
    (panel,) = [path for path in (shards / "shortcuts").glob("panel-*") if "0.6" not in path.name][:1]
    panel.write_text("[" * 100_000)
    assert "Scoring what can be told" in report(first) + report(more), "a file that is none is found anew"
    panel.write_text(panel.read_text().replace('"damaged": 0', '"damaged": 7'))
    assert "7 clips could not be read" not in report(first) + report(more), "a file that was changed is not believed"


def test_a_report_does_without_the_shards(plain: Path, tmp_path: Path, report: Report) -> None:
    """Gone, or others in their place: that is said, the scores stand; asked not to, it measures nothing."""
    shards = Path(shutil.copytree(plain, tmp_path / "shards", ignore=shutil.ignore_patterns("shortcuts", "scored")))
    run = trained(planned(tmp_path / "runs", shards, *folds()))
    assert "Without listening" not in report(run, "--no-panel") and not (shards / "shortcuts").exists()
    assert "is not to be now (--no-panel)" in run.report_md.read_text()
    shutil.rmtree(shards)
    assert "UAR" in report(run)
    text = run.report_md.read_text()
    assert "What could be scored without listening is not known:" in text and "holds no packed corpus" in text
    assert "nothing can be written beside the shards" in text and (run.path.parent / "scored").is_dir()
    assert read_json(run.report_json)["without_listening"]["panel"] is None
    shutil.copytree(corpus(tmp_path / "new", hum(0.3), balanced), shards)
    report(run)
    assert "the shards are others than those that the run was planned from" in run.report_md.read_text()


def test_shards_in_a_store_are_measured_too(plain: Path, tmp_path: Path, report: Report) -> None:
    """What is kept of them lies beside the runs, and is found there by the next report."""
    store = fsspec.filesystem("memory")
    store.put(f"{plain}/", "/plain", recursive=True)
    try:
        run = trained(planned(tmp_path / "runs", Path("memory:") / "plain", *folds("data.shards=memory://plain")))
        assert "Scoring what can be told" in report(run)
        assert "Scoring what can be told" not in report(run)
        assert "nothing can be written beside the shards" in run.report_md.read_text()
        assert {path.name for path in run.path.parent.iterdir()} == {run.path.name, "shortcuts", "scored"}
    finally:
        store.rm("/plain", recursive=True)


def test_a_damaged_clip_does_not_stop_it(plain: Path, tmp_path: Path, report: Report) -> None:
    shards = Path(shutil.copytree(plain, tmp_path / "shards", ignore=shutil.ignore_patterns("shortcuts", "scored")))
    run = trained(planned(tmp_path / "runs", shards, *folds()))
    tar = next(shards.glob("*/*.tar"))
    content = bytearray(tar.read_bytes())
    content[2000] ^= 255
    tar.write_bytes(content)
    report(run)
    assert "1 clip could not be read, and took part without measurements." in run.report_md.read_text()


def test_how_often_the_same_clips_were_scored(plain: Path, tmp_path: Path, report: Report) -> None:
    """A configuration counts once, whatever its seeds, its folder and its reports; one that is not complete does not."""
    shards = Path(shutil.copytree(plain, tmp_path / "shards", ignore=shutil.ignore_patterns("scored")))

    def told(run: RunDir) -> str:
        report(run)
        (line,) = [line for line in run.report_md.read_text().splitlines() if "scored on these test clips" in line]
        return line.removeprefix("- ")

    first = trained(planned(tmp_path / "runs", shards, *folds()), 0.9)
    assert told(first) == told(first) == "The first configuration that is scored on these test clips."
    second = planned(tmp_path / "other", shards, *folds("train.lr=1e-4"))
    trained(second, 0.3)
    shutil.rmtree(second.trial(second.trials()[0]).path)
    assert told(second).startswith("1 configuration scored on these test clips so far; pooled UAR of all so far: best 0.")
    trained(second, 0.3)
    assert told(second).startswith("The 2nd configuration scored on these test clips; pooled UAR of all so far: best 0.8")
    trained(planned(tmp_path / "other", shards, *folds("train.lr=1e-4", "seeds=2")), 0.3)
    assert told(second).startswith("The 2nd configuration") and read_json(second.report_json)["seeds"][1]["seed"] == 1
    assert told(first).startswith("The 1st of 2 configurations")
    same = planned(tmp_path / "third", shards, *folds())
    assert told(trained(same, 0.5)).startswith("The 1st of 2 configurations"), "the same experiment in another folder"
    others = trained(planned(tmp_path / "runs", shards, "folds.protocol=leave_one_speaker_out", "folds.count=6"))
    assert told(others) == "The first configuration that is scored on these test clips."
    entries = sorted((shards / "scored").glob("*/*.json"))
    assert len(entries) == 3 and not (tmp_path / "runs" / "scored").exists()
    (scores,) = [read_json(path)["scores"] for path in entries if path.stem == read_json(second.plan)["run"][:16]]
    assert [score["seeds"] for score in scores] == [1, 2], "what was reported with one seed stays there"


def plan_of(number: int) -> dict[str, Any]:
    return {"name": "x", "run": f"{number:064x}"[::-1], "seeds": [0], "folds": [{"test": {"digest": "a" * 64}}]}


def test_many_reports_at_once_lose_no_entry(tmp_path: Path) -> None:
    """On any machines: nothing is read and written back, so no lock is needed."""
    folder = SharedFolder(tmp_path / "shards", tmp_path / "runs")
    (tmp_path / "shards").mkdir()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: enter_score(folder, plan_of(number % 17), number % 17 / 17), range(51)))
    ledger = enter_score(folder, plan_of(3), 3 / 17)
    assert ledger is not None and ledger.place == "shards" and ledger.number in range(1, 18)
    assert sorted(ledger.uars) == pytest.approx([number / 17 for number in range(17)])
    assert ledger.best == pytest.approx(16 / 17) and ledger.median == pytest.approx(8 / 17)


def test_where_the_shards_are_remote_it_is_kept_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "runs" / "x")
    run.path.mkdir(parents=True)
    remote = SharedFolder.of(run, Url("https://host/shards"), "scored")
    assert (ledger := enter_score(remote, plan_of(1), 0.5)) is not None and ledger.place == "runs"
    assert "nothing can be written beside the shards" in ledger.sentence()
    (tmp_path / "shards").mkdir()
    local = SharedFolder.of(run, tmp_path / "shards", "scored")
    monkeypatch.setattr(
        "ser_hpc.run.shared_folder.os.access", lambda path, mode: tmp_path / "shards" not in [path, *path.parents]
    )
    read_only = enter_score(local, plan_of(2), 0.7)
    assert read_only is not None and (read_only.number, read_only.place) == (2, "runs")
    monkeypatch.setattr("ser_hpc.run.shared_folder.os.access", lambda path, mode: False)
    nowhere = enter_score(local, plan_of(3), 0.1)
    assert nowhere is not None and nowhere.place is None and "could not be entered" in nowhere.sentence()
    assert len(list(tmp_path.glob("runs/scored/*/*.json"))) == 2


def test_a_stranger_in_the_ledger_is_passed_over(tmp_path: Path) -> None:
    folder = SharedFolder(None, tmp_path / "scored")
    enter_score(folder, plan_of(1), 0.5)
    (entry,) = tmp_path.glob("scored/*/*.json")
    for name, content in {
        "b" * 16: entry.read_text(),
        "c" * 16: "{",
        "d" * 16: json.dumps({"run": "d" * 64, "first": 1, "scores": [{"uar": 7}]}),
        "e" * 16: json.dumps({"run": "e" * 64, "first": "soon", "scores": [{"uar": 0.5}]}),
        "f" * 16: json.dumps({"run": "f" * 64, "first": 1, "scores": []}),
        "0" * 16: "[" * 100_000,
        entry.stem: entry.read_text().replace('"first": ', '"first": NaN, "was": '),
    }.items():
        entry.with_name(f"{name}.json").write_text(content)
    ledger = enter_score(folder, plan_of(1), 0.5)
    assert ledger is not None and ledger.uars == (0.5,)
    numbers = {1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 112: "112th"}
    assert {number: ordinal(number) for number in numbers} == numbers


def test_the_line_for_the_terminal_fits_it(plain: Path, tmp_path: Path) -> None:
    from ser_hpc.results.intervals import Interval
    from ser_hpc.results.shortcut_panel import Shortcut
    from ser_hpc.results.without_listening import WithoutListening

    names = ("silence at edges", "first 200 ms")
    for control in (0.25, 0.62):
        rows = tuple(Shortcut(name, 0.635, Interval((0.5, 0.7)), control) for name in names)
        line = WithoutListening(run_panel.Panel(rows, 9, 9, 1, 1, 0, 0, 0, 9), None, None, None, 0.25).short()
        assert line is not None and len(line) <= 80, line


@pytest.mark.parametrize("place", ["hub", "folder", "cache"])
def test_a_checkpoint_that_knows_the_corpus_is_told_when_planning_and_in_the_report(
    place: str, tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ser_hpc import launch

    monkeypatch.setattr(trial_checks, "_model", lambda model, models: (None, []))
    shards = corpus(tmp_path, hum(), balanced, name="iemocap_3")
    weights = "superb/hubert-base-superb-er"
    if place != "hub":
        folder = tmp_path / ("mine" if place == "folder" else "models--superb--hubert-base-superb-er/snapshots/1a2b")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"_name_or_path": weights} if place == "folder" else {}))
        weights = str(folder)
    lines = [f"run.root={tmp_path / 'runs'}", f"data.shards={shards}", f"model.weights={weights}", "train.global_batch=4"]
    assert launch.main(["--dry-run", "--cluster", "local", "--gpus-per-node", "1", *lines, *folds()]) == 0
    told = "superb/hubert-base-superb-er was trained on iemocap, and iemocap_3 is tested here"
    assert told in " ".join(capsys.readouterr().out.split())
    run = trained(planned(tmp_path / "runs", shards, *folds(*lines[2:]), plain=True))
    report(run, "--no-panel")
    assert f"**Warning: {told}" in run.report_md.read_text()
    assert any(told in warning for warning in read_json(run.report_json)["warnings"])
    assert score_ledger.FOLDER in {path.name for path in shards.iterdir()}


def test_experiments_are_the_same_as_before(plain: Path, tmp_path: Path, report: Report) -> None:
    """What stands beside the shards is no part of them: neither of their fingerprint nor of a run's identity."""
    from ser_hpc.shards import verify

    shards = Path(shutil.copytree(plain, tmp_path / "shards", ignore=shutil.ignore_patterns("shortcuts", "scored")))
    run = planned(tmp_path / "runs", shards, *folds())
    before = {path.name for path in shards.iterdir()}
    report(trained(run))
    assert {path.name for path in shards.iterdir()} - before == {"shortcuts", "scored"}
    assert reopen_experiment(run).run == run
    assert planned(tmp_path / "runs", shards, *folds()) == run
    assert verify.main([str(shards)]) == 0
