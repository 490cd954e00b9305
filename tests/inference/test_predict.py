"""Predicting: what a trial saved is what its model predicts, in whatever form and batches; and bad files are told."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.made import RUNS, fine_tuned, probed, several_tasks
from pyarrow import parquet
from small import packed_tones

import ser_hpc
from ser_hpc import predict
from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.inference.recordings import ArrayRecording
from ser_hpc.inference.windows import Windows, sliding
from ser_hpc.run.predictions import Prediction, read_predictions
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.shards import RATE, audio


def saved(run: RunDir, fold: int = 0) -> dict[str, Prediction]:
    """The predictions of a trial, by the key of the clip."""
    path = run.trial(Trial(0, fold)).current.predictions
    return {f"{p.corpus}-{p.utterance_id}": p for p in read_predictions(path)}


def wavs(base: Path) -> list[Path]:
    packed_tones(base)
    return sorted((base / "wav-4-6").glob("*.wav"))


def run_command(*arguments: object) -> int:
    return cli.run_to_exit_code(lambda: predict.main([str(each) for each in arguments]))


def lines_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", RUNS)
def test_a_trials_model_predicts_what_the_trial_saved(kind: str, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RUNS[kind](base)
    wanted = saved(run)
    assert run_command(run.path, packed_tones(base), "--fold", 0, "--seed", 0, "--uncalibrated", "--format", "jsonl") == 0
    found = {str(line["audio"]): line for line in lines_of(capsys.readouterr().out)}
    assert wanted.keys() < found.keys(), "the shards hold the training part too"
    for key, prediction in wanted.items():
        line = found[key]
        assert line["label"] == prediction.predicted
        assert line["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
        for name, task in prediction.tasks.items():
            assert line["tasks"][name] == pytest.approx(task["prediction"], abs=1e-5)  # type: ignore[index]


@pytest.mark.parametrize("kind", RUNS)
def test_a_clip_does_not_depend_on_what_it_is_predicted_with(kind: str, base: Path) -> None:
    model = ser_hpc.load(RUNS[kind](base).path, fold=0, batch_seconds=2)
    paths = wavs(base)[:30]
    together = model.predict(paths)
    assert [p.audio for p in together] == [str(path) for path in paths]
    for path, prediction in list(zip(paths, together, strict=True))[::7]:
        (alone,) = model.predict(path)
        assert alone.probabilities == pytest.approx(prediction.probabilities, abs=1e-5)
        assert alone.end_s == pytest.approx(soundfile.info(path).duration)


def test_calibration_changes_how_sure_it_is_and_no_class(base: Path) -> None:
    run = fine_tuned(base)
    calibrated, raw = (ser_hpc.load(run.path, fold=0, calibrated=which) for which in (True, False))
    temperature = calibrated.spec.members[0].temperatures["emotion"]
    for after, before in zip(calibrated.predict(wavs(base)[:9]), raw.predict(wavs(base)[:9]), strict=True):
        assert after.label == before.label
        scaled = np.array(list(before.probabilities.values())) ** (1 / temperature)
        assert list(after.probabilities.values()) == pytest.approx(scaled / scaled.sum(), abs=1e-5)


def test_a_run_predicts_with_the_mean_of_its_folds(base: Path) -> None:
    run = probed(base)
    whole = ser_hpc.load(run.path)
    assert [(m.seed, m.fold) for m in whole.spec.members] == [(0, 0), (0, 1), (0, 2)]
    assert len(list(whole._model.encoders)) == 1, "one frozen encoder runs once"
    each = [ser_hpc.load(run.path, fold=fold).predict(wavs(base)[:8]) for fold in range(3)]
    for number, found in enumerate(whole.predict(wavs(base)[:8])):
        mean = {name: np.mean([of[number].probabilities[name] for of in each]) for name in found.probabilities}
        assert found.probabilities == pytest.approx(mean, abs=1e-6)


def test_a_user_whom_nobody_knows_is_a_file_that_is_not_there(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a table, `~nobody/a.wav`: the others are predicted."""
    (tmp_path / "table.csv").write_text(f"audio\n~nobody_at_all/a.wav\n{wavs(base)[0]}\n")
    assert run_command(fine_tuned(base).path, tmp_path / "table.csv", "--fold", 0, "--format", "jsonl") == 1
    told = capsys.readouterr()
    assert len(lines_of(told.out)) == 1 and "~nobody_at_all/a.wav does not exist" in told.err


def test_samples_files_tables_folders_and_pieces_are_predicted_alike(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = fine_tuned(base), wavs(base)[0]
    model = ser_hpc.load(run.path, fold=0)
    (wanted,) = model.predict(path)
    samples = audio.decode(path).samples
    long = np.concatenate([np.zeros(RATE, np.int16), samples, np.zeros(RATE, np.int16)])
    soundfile.write(tmp_path / "long.wav", long, RATE)
    soundfile.write(tmp_path / "stereo.flac", np.stack([samples, samples], axis=1), RATE)
    (tmp_path / "table.csv").write_text(f"audio,start_s,end_s\nlong.wav,1.0,{1 + len(samples) / RATE}\n{path},,\n")
    (tmp_path / "table.jsonl").write_text(json.dumps({"audio": str(path)}) + "\n")
    alike = [samples, samples.astype(np.float32) / 32768, torch.from_numpy(samples), tmp_path / "stereo.flac"]
    for found in (*model.predict(alike), *model.predict([tmp_path / "table.csv", tmp_path / "table.jsonl"])):
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)
    assert model.predict(tmp_path / "table.csv")[0].start_s == 1.0
    folder = tmp_path / "inner" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.wav").symlink_to(path)
    (folder / "notes.txt").write_text("no sound")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{path}\n\n{tmp_path / 'inner'}\n"))
    assert run_command(run.path, "-", "--fold", 0, "--format", "jsonl") == 0
    told = lines_of(capsys.readouterr().out)
    assert [line["audio"] for line in told] == [str(path), str(folder / "a.wav")]
    assert {"audio", "start_s", "end_s", "label", "confidence", "probabilities"} == told[0].keys()
    assert told[0]["confidence"] == max(told[0]["probabilities"].values())  # type: ignore[attr-defined]


def test_formats_say_the_same(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, paths = several_tasks(base), wavs(base)[:4]
    for name in ("out.jsonl", "out.csv", "out.parquet", "out.txt"):
        assert run_command(run.path, *paths, "--fold", 0, "--unsure", 0.999, "--out", tmp_path / name) == 0
    lines = lines_of((tmp_path / "out.jsonl").read_text())
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    texts = list(csv.DictReader((tmp_path / "out.csv").open()))
    table = (tmp_path / "out.txt").read_text().splitlines()
    assert len(lines) == len(rows) == len(texts) == len(table) - 1 == 4
    for line, row, text, shown in zip(lines, rows, texts, table[1:], strict=True):
        assert line["unsure"] is True is row["unsure"] and text["unsure"] == "True" and "unsure" in shown
        assert row["p_sad"] == line["probabilities"]["sad"] == float(text["p_sad"])  # type: ignore[index]
        assert row["gender_male"] == line["tasks"]["gender"]["male"] and "gender" in shown  # type: ignore[index]
        assert shown.startswith(str(line["label"])) and str(line["audio"]) in shown
    assert capsys.readouterr().out == ""


class Vanishing:
    """A recording whose file is taken away after its first block."""

    name, start_s = "vanishing.wav", 0.0

    def blocks(self):  # type: ignore[no-untyped-def]
        yield np.zeros(RATE, np.int16)
        raise FileNotFoundError(2, "No such file or directory")


def test_bad_files_are_told_and_the_others_predicted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, good = fine_tuned(base), wavs(base)[0]
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "text.wav").write_text("this is no sound at all, but a text")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "half.flac").write_bytes(audio.encode_flac(audio.decode(good).samples)[:3000])
    bad = [tmp_path / name for name in ("fifo.wav", "text.wav", "empty.wav", "half.flac", "none.wav")]
    out = tmp_path / "out.jsonl"
    assert run_command(run.path, *bad[:3], good, *bad[3:], good, "--fold", 0, "--out", out) == 1
    assert [line["audio"] for line in lines_of(out.read_text())] == [str(good)] * 2
    errors = capsys.readouterr().err
    for path, word in zip(bad, ("pipe", "text", "empty", "", "not exist"), strict=True):
        assert any(str(path) in line and word in line for line in errors.splitlines()), errors
    assert "5 recordings could not be read" in errors and "Traceback" not in errors
    model = ser_hpc.load(run.path, fold=0)
    found = list(model.stream([Vanishing(), ArrayRecording("whole", audio.decode(good).samples)]))  # type: ignore[list-item]
    assert "No such file" in str(found[0]) and found[1].audio == "whole"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fold", 9], "no finished seed 0 fold 9"),
        ([], "fold 1, 2 is not finished"),
        (["--fold", 0, "--hop", 1], "--window"),
        (["--fold", 0, "--window", 4, "--hop", 5], "never heard"),
        (["--fold", 0, "--window", 0.001], "a window of 0.001 s"),
        (["--fold", 0, "--unsure", 7], "probability"),
        (["--fold", 0, "--watch", "nowhere"], "no such folder"),
        (["--fold", 0, "--watch", "/", "--out", "x.csv"], "never ends"),
        (["--fold", 0, "--device", "toaster"], "no device"),
        (["--fold", 0, "--format", "parquet"], "--out"),
        (["--fold", 0, "--out", "x.doc"], ".jsonl"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    arguments: list[object],
    words: str,
    base: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(fine_tuned(base).path, wavs(base)[0], *arguments) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_neither_a_run_nor_a_model(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "none", packed_tones(base)):
        assert run_command(folder, wavs(base)[0]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_weights_below_what_was_trained_must_be_the_same(base: Path, tmp_path: Path) -> None:
    """A probe's run holds the head alone: over another encoder it would predict nonsense."""
    run = probed(base)
    weights = base / "weights" / "config.json"
    before = weights.read_text()
    try:
        weights.write_text(before + "\n")
        with pytest.raises(UserError, match="is not what"):
            ser_hpc.load(run.path, fold=0)
    finally:
        weights.write_text(before)


def test_clips_unlike_all_that_a_probe_knows_are_told(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are where all training clips have one length, and these have another."""
    model = ser_hpc.load(probed(base).path, fold=0)
    samples = audio.decode(wavs(base)[0]).samples
    assert not any(found.strange for found in model.predict(wavs(base)[:20]))
    head = model._model.heads[0]["emotion_"]
    head.scale[0] = 1e-6  # of a feature that did not vary
    assert all(found.strange for found in model.predict([samples, wavs(base)[1]]))


def test_a_watched_folder_is_predicted_as_it_fills(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each recording once, when it has stopped growing; Ctrl-C ends it."""
    whole, looks = wavs(base)[0].read_bytes(), 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 7:
            raise KeyboardInterrupt
        if looks in (1, 2):  # it is still being written
            (tmp_path / "late.wav").write_bytes(whole[: looks * len(whole) // 2])

    (tmp_path / "early.wav").write_bytes(whole)
    monkeypatch.setattr("ser_hpc.inference.watch.sleep", sleep)
    assert run_command(fine_tuned(base).path, "--fold", 0, "--watch", tmp_path, "--format", "jsonl") == 130
    told = capsys.readouterr()
    lines = lines_of(told.out)
    assert [line["audio"] for line in lines] == [str(tmp_path / "early.wav"), str(tmp_path / "late.wav")]
    assert lines[0]["probabilities"] == lines[1]["probabilities"] and "could not be read" not in told.err


# Windows.


@settings(max_examples=80)
@given(
    st.integers(1, 40_000),
    st.integers(2_000, 12_000),
    st.floats(0.2, 1),
    st.lists(st.integers(1, 9_000), min_size=1, max_size=5),
)
def test_windows_cover_a_recording_whatever_its_blocks(length: int, size: int, part: float, blocks: list[int]) -> None:
    """Every sample is in a window, each window holds the samples of its place, and all but the last start a hop apart."""
    samples = np.arange(length).astype(np.int16)

    class Blocks(ArrayRecording):
        def blocks(self):  # type: ignore[no-untyped-def]
            begin = number = 0
            while begin < length:
                yield samples[begin : begin + blocks[number % len(blocks)]]
                begin, number = begin + blocks[number % len(blocks)], number + 1

    hop = max(1600, round(size * part))
    windows = list(sliding(Blocks("x", samples), Windows(size / RATE, min(hop, size) / RATE)))
    starts = [round(w.start_s * RATE) for w in windows]
    heard = np.zeros(length, bool)
    for start, window in zip(starts, windows, strict=True):
        assert (window.samples == samples[start : start + len(window.samples)]).all()
        assert len(window.samples) == min(size, length)
        heard[start : start + size] = True
    assert heard.all() and starts[-1] + min(size, length) == length
    assert all(b - a == min(hop, size) for a, b in pairwise(starts[:-1]))


def test_long_recordings_are_predicted_in_windows_and_not_as_one(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fine_tuned(base)
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 301 * RATE), RATE)
    assert run_command(run.path, tmp_path / "long.wav", "--fold", 0) == 1
    assert "--window" in capsys.readouterr().err
    assert run_command(run.path, tmp_path / "long.wav", "--fold", 0, "--window", 4, "--hop", 2, "--format", "jsonl") == 0
    times = [(line["start_s"], line["end_s"]) for line in lines_of(capsys.readouterr().out)]
    assert times[:2] == [(0, 4), (2, 6)] and times[-1] == (297, 301) and len(times) == 150


@pytest.mark.parametrize(
    "make", [lambda x: x, lambda x: np.stack([x, -x, x * 0.2], axis=1), lambda x: np.stack([x, x], axis=1)]
)
def test_a_stream_is_what_is_packed(make: Callable[[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    sound = make(np.random.default_rng(1).uniform(-0.5, 0.5, 100_003))
    for name, subtype, rate in (("a.wav", "PCM_16", 44_100), ("b.wav", "FLOAT", 16_000), ("c.flac", "PCM_24", 8_000)):
        soundfile.write(tmp_path / name, sound, rate, subtype=subtype)
        whole = audio.decode(tmp_path / name).samples
        assert (np.concatenate(list(audio.stream(tmp_path / name))) == whole).all()
        piece = audio.decode(tmp_path / name, 0.5, 1.25).samples
        assert (np.concatenate(list(audio.stream(tmp_path / name, 0.5, 1.25))) == piece).all()
