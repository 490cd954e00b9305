"""Runs of the version before this one: reported on as they were, and continued by their own code or refused in words.

`runs_of_before` holds two that commit 4860d78 made, without weights: one whole, one with a single trial done.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from made import as_of_before
from ranks import call
from small import packed_tones, planned, wav2vec2

from ser_hpc import status
from ser_hpc.config.load import load_run_settings, load_settings
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.launch import main
from ser_hpc.launchers.slurm import jobs
from ser_hpc.report import write_report
from ser_hpc.results.plan_checks import LEGACY_NOTE
from ser_hpc.run import identity, snapshot
from ser_hpc.run.create_run import write_run
from ser_hpc.run.experiment import Experiment, old_defaults_note, prepare_experiment, reopen_experiment
from ser_hpc.run.plan import read_plan
from ser_hpc.run.run_dir import RunDir, Trial

KEPT = Path(__file__).parent / "runs_of_before"
TINY = wav2vec2(hidden_size=8, num_attention_heads=1, intermediate_size=8, conv_dim=[8, 8, 8], num_conv_pos_embeddings=4)
FIELDS = (
    "uar",
    "wa",
    "macro_f1",
    "kappa",
    "confusion",
    "recall",
    "seeds",
    "folds",
    "missing",
    "partial",
    "num_test",
    "classes",
)


@pytest.mark.parametrize("name", sorted(path.name for path in KEPT.iterdir()))
def test_they_are_reported_with_the_numbers_of_then(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(Path(shutil.copytree(KEPT / name, tmp_path / name)))
    before: dict[str, Any] = read_json(run.report_json)
    result = write_report(run)
    after = read_json(run.report_json)
    for report in (before, after):  # the interval is computed otherwise since
        report["uar"] = {name: report["uar"][name] for name in ("mean", "std", "pooled")}
    assert {field: after[field] for field in FIELDS} == {field: before[field] for field in FIELDS}
    assert LEGACY_NOTE in result.notes
    assert load_run_settings(run.settings).train.precision == "fp32", "read with what was said then"
    assert status.main([str(run.path)]) in (0, 1)
    assert f"{len(run.trials())} trials" in capsys.readouterr().out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("before")


def lines(base: Path, root: Path, *more: str) -> list[str]:
    return [
        *(f"run.root={root}", f"data.shards={packed_tones(base, 3, 2)}", "model.weights=null", f"model.config={TINY}"),
        *("train.epochs=1", "train.global_batch=8", "folds.protocol=speaker_groups", "folds.count=3", "train.precision=fp32"),
        *more,
    ]


def of_before(base: Path, root: Path) -> RunDir:
    """A run as the version before had planned it, under the name that it gave; its code is kept, and one trial began."""
    made = write_run(prepare_experiment(load_settings(None, lines(base, root))))
    experiment = prepare_experiment(load_settings(None, lines(base, root)))
    who = identity.identity_of(experiment.settings, experiment.label_set, {"shards": experiment.index.fingerprint}, 1)
    assert who is not None and who.digest != experiment.identity.digest
    as_of_before(made)
    run = RunDir(made.path.rename(root / f"ser-{who.digest[:8]}"))
    attempt = run.trial(Trial(0, 0)).claim()
    write_json(attempt.attempt, {"code": snapshot.take_snapshot(run).digest, "started": 1.0})
    write_json(attempt.progress, {"step": 1})
    return run


def test_the_same_command_finds_the_run_and_refuses_it_in_words(base: Path, tmp_path: Path) -> None:
    """Nothing is written into it, and no second run is begun beside it."""
    run = of_before(base, tmp_path / "runs")
    before = {path: path.read_bytes() for path in (run.plan, run.settings)}
    for arguments, words in (
        ([], "was planned by an earlier version of this package.*add --code saved"),
        (["--seeds", "2", "--code", "saved"], r"it takes no more seeds \(1\)"),
    ):
        with pytest.raises(UserError, match=words):
            main(["--cluster", "local", *arguments, *lines(base, run.path.parent)])
    assert {path: path.read_bytes() for path in before} == before and not run.identity.exists()
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]


def test_the_same_words_point_to_the_run_though_a_default_has_changed(base: Path, tmp_path: Path) -> None:
    """It was fp32 then, and is auto now: another run, unless that is said."""
    run = of_before(base, tmp_path / "runs")
    words = [line for line in lines(base, run.path.parent) if not line.startswith("train.precision")]
    (note,) = old_defaults_note(prepare_experiment(load_settings(None, words)))
    assert (
        note
        == f"{run.path} was made by an earlier version, whose default was train.precision=fp32: to go on with it, add that."
    )
    assert old_defaults_note(prepare_experiment(load_settings(None, lines(base, run.path.parent)))) == [], "it is found"
    assert old_defaults_note(prepare_experiment(load_settings(None, lines(base, tmp_path / "other")))) == []


def test_its_own_code_goes_on_with_it(base: Path, tmp_path: Path) -> None:
    run = of_before(base, tmp_path / "runs")
    words = ["--cluster", "local", "--gpus-per-node", "1", "--code", "saved", *lines(base, run.path.parent)]
    assert call(main, words).returncode == 0
    assert all(run.trial(trial).is_done for trial in run.trials())
    assert not run.identity.exists() and read_json(run.plan)["format"] == 1


def test_a_run_of_schema_2_is_found_and_goes_on_in_the_names_that_its_own_code_knows(base: Path, tmp_path: Path) -> None:
    """Names of settings, and of keys in plan and identity, have changed since; reports and jobs of today read both."""
    words = lines(base, tmp_path / "runs", "train.ema_decay=0.5")
    now = prepare_experiment(load_settings(None, words))
    who = identity.identity_of(now.settings, now.label_set, {"shards": now.index.fingerprint}, 2)
    assert who is not None and who.digest != now.identity.digest
    assert who.content["settings"]["train"]["average"] == 0.5
    run = write_run(replace(now, identity=who, run=RunDir(tmp_path / "runs" / f"ser-{who.digest[:8]}")))
    files = {file: file.read_bytes() for file in (run.plan, run.identity, run.settings, run.labels)}
    plan, settings = read_json(run.plan), yaml.safe_load(run.settings.read_text())
    assert plan["format"] == 2 and "same_speakers" in plan and {"words", "num"} <= plan["folds"][0]["test"].keys()
    assert "what" in read_json(run.identity) and settings["schema"] == 2 and settings["train"]["average"] == 0.5
    found = prepare_experiment(load_settings(None, words))
    assert found.run == run and found.identity == who
    assert reopen_experiment(run).settings.train.ema_decay == 0.5
    part = read_plan(run)["folds"][0]["test"]
    assert part["description"] == plan["folds"][0]["test"]["words"] and part["num_clips"] == plan["folds"][0]["test"]["num"]
    assert read_plan(run)["speaker_aliases"] == {}
    write_run(found)
    assert {file: file.read_bytes() for file in files} == files


def test_launching_again_mends_what_was_lost_of_a_finished_run(base: Path, tmp_path: Path) -> None:
    """The advice that a refused report gives is true: every seed that was trained is there again, and nothing is trained."""
    arguments = ["--cluster", "local", "--gpus-per-node", "1", *lines(base, tmp_path / "runs")]
    assert call(main, [*arguments, "--seeds", "2"]).returncode == 0
    (path,) = (tmp_path / "runs").iterdir()
    run = RunDir(path)
    write_report(run)
    report, trained = read_json(run.report_json), {file: file.stat().st_mtime_ns for file in path.glob("seed_*/*/done.json")}
    one_seed = prepare_experiment(load_settings(None, lines(base, tmp_path / "one")))
    damages = [
        lambda: run.plan.write_text(run.plan.read_text().replace('"num_clips": ', '"num_clips": 1', 1)),
        run.plan.unlink,
        run.identity.unlink,
        run.labels.unlink,
        lambda: [shutil.copyfile(getattr(write_run(one_seed), name), getattr(run, name)) for name in ("plan", "identity")],
    ]
    for damage in damages:
        damage()
        with pytest.raises(UserError):
            write_report(run)
        assert main(arguments) == 0
        assert read_json(run.report_json) == report
    assert {file: file.stat().st_mtime_ns for file in trained} == trained


def test_weights_in_a_folder_are_part_of_a_run_and_their_place_is_not(base: Path, tmp_path: Path) -> None:
    def prepared(weights: Path) -> Experiment:
        changed = [line for line in lines(base, tmp_path / "runs") if not line.startswith("model.")]
        return prepare_experiment(load_settings(None, [*changed, f"model.weights={weights}"]))

    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "wav2vec2"}')
    (folder / "model.safetensors").write_bytes(b"first")
    first = prepared(folder)
    assert prepared(folder / ".." / "w").run == first.run
    run = write_run(first)
    moved = folder.rename(tmp_path / "moved")
    assert prepared(moved).run == run
    write_run(prepared(moved))
    assert reopen_experiment(run).run == run
    (moved / "model.safetensors").write_bytes(b"other")
    assert prepared(moved).run != run
    with pytest.raises(UserError, match="was made with other weights than are there now"):
        reopen_experiment(run)


def test_a_run_of_now_keeps_its_directory_when_its_plan_is_damaged(base: Path, tmp_path: Path) -> None:
    """The advice to launch again is true: the plan is made anew, with every seed that was ever planned."""
    run = planned(tmp_path, packed_tones(base, 3, 2), "seeds=[0, 3]", "folds.protocol=speaker_groups", encoder=TINY)
    content = run.plan.read_text()
    for damage in (content.replace('"num_clips": ', '"num_clips": 1', 1), content[:50]):
        run.plan.write_text(damage)
        with pytest.raises(UserError, match="plan"):
            reopen_experiment(run)
        assert snapshot.digests_used(run) == {} and jobs.active_jobs(run) == {}, "what a launcher asks first needs no plan"
        again = planned(tmp_path, packed_tones(base, 3, 2), "seeds=[0]", "folds.protocol=speaker_groups", encoder=TINY)
        assert again == run and run.plan.read_text() == content
