"""Several corpora in one run, from packing to the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from small import CLASSES, run_here, tones, wav2vec2

from ser_hpc import report
from ser_hpc.config.load import load_settings
from ser_hpc.run import experiment, predictions
from ser_hpc.run.create_run import write_run
from ser_hpc.run.run_dir import RunDir
from ser_hpc.shards.write import pack

OTHER_WORDS = {"angry": "W", "neutral": "N", "sad": "T"}


def packed(base: Path) -> list[Path]:
    """One set of recordings of other speakers and sessions as each of two corpora, which call emotions differently."""
    clips = tones(base / "wav", sessions=4, takes=2)
    first = [clip for clip in clips if clip.session in ("s1", "s2")]
    second = [replace(clip, corpus="bells", emotion=OTHER_WORDS[clip.emotion]) for clip in clips if clip not in first]
    folders = [base / "tones", base / "bells"]
    for part, folder in zip((first, second), folders, strict=True):
        pack(part, folder, workers=1)
    return folders


def run_of(base: Path, folders: list[Path], *more: str) -> RunDir:
    labels = base / "both.yaml"
    labels.write_text(f"classes: {list(CLASSES)}\nmap: {{bells: {{W: angry, N: neutral, T: sad}}}}\n")
    model = ["model.weights=null", f"model.config={wav2vec2()}", "model.head.projection=16"]
    shards = ",".join(str(folder) for folder in folders)
    data = [f"data.shards=[{shards}]", f"data.labels={labels}", "data.balance=speaker", "train.epochs=1"]
    return write_run(experiment.prepare_experiment(load_settings(None, [f"run.root={base / 'runs'}", *model, *data, *more])))


def test_each_corpus_is_tested_by_a_model_that_never_heard_it(tmp_path: Path) -> None:
    folders = packed(tmp_path)
    run = run_of(tmp_path, folders, "folds.protocol=leave_one_corpus_out")
    assert set(run_here(run).values()) == {0} and len(run.trials()) == 2
    for fold, tested in enumerate(("bells", "tones")):
        found = predictions.read_predictions(run.trial(run.trials()[fold]).current.predictions)
        test = [p for p in found if p.part == "test"]
        assert {p.corpus for p in test} == {tested} and len(test) == 24
        assert {p.corpus for p in found if p.part == "dev"} == {"bells", "tones"} - {tested}
    assert report.main([str(run.path)]) == 0
    told = json.loads(run.report_json.read_text())
    assert told["missing"] == [] and len(told["folds"]) == 2


def test_the_order_in_which_corpora_are_listed_changes_nothing(tmp_path: Path) -> None:
    folders = packed(tmp_path)
    protocol = "folds.protocol=speaker_groups"
    one, other = run_of(tmp_path, folders, protocol), run_of(tmp_path, folders[::-1], protocol)
    assert one.path == other.path
