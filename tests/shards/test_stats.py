"""inspect_shards: it counts what was packed, a clip is found and comes out as it went in, folds are told sound or not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from small import tones

from ser_hpc import inspect as command
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards import stats
from ser_hpc.shards.index import REPORT, ShardIndex
from ser_hpc.shards.write import pack


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Three sessions of tones; one clip silent."""
    found = tones(tmp_path_factory.mktemp("wav"), sessions=3, takes=2)
    soundfile.write(found[0].audio_path, np.zeros(8000), 16_000)
    return found


@pytest.fixture(scope="module")
def shards(clips: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "tones"
    pack(clips, out, workers=1, left_out=[(Path("notes.txt"), "no sound")])
    return out


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another corpus with the same ids, of one speaker, that prescribes a split."""
    split = {"0": "train", "1": "dev", "2": "test"}
    made = [
        replace(clip, corpus="hums", speaker="s1f", session="", split=split[clip.utterance_id[-1]])
        for clip in tones(tmp_path_factory.mktemp("wav2"), sessions=1, takes=3)
    ]
    out = tmp_path_factory.mktemp("shards2") / "hums"
    pack(made, out, workers=1)
    return out


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """`told(*arguments)`: what --json says, and the exit code under "code"."""

    def call(*arguments: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        code = command.main([*map(str, arguments), "--json"])
        return {**json.loads(capsys.readouterr().out), "code": code}

    yield call


def test_counts_are_those_of_the_clips_that_were_packed(told: Any, shards: Path, clips: list[Utterance]) -> None:
    summary = told(shards)["summary"]
    packed = clips[1:]
    for column, name in (("class", "emotion"), ("speaker", "speaker"), ("gender", "gender"), ("group", "session")):
        found = {value: count["clips"] for value, count in summary["counts"][column].items()}
        assert found == Counter(getattr(clip, name) for clip in packed), column
    seconds = sum(soundfile.info(clip.audio_path).duration for clip in packed)
    assert summary["clips"] == len(packed) and summary["seconds"] == pytest.approx(seconds, abs=1e-3)
    for column in ("class", "speaker", "group", "corpus"):
        assert sum(count["seconds"] for count in summary["counts"][column].values()) == pytest.approx(seconds, abs=0.02)
    assert sum(clips for _, _, clips in summary["durations"]["bins"]) == len(packed)


def test_findings_and_files_left_out_come_from_the_pack_report(told: Any, shards: Path, clips: list[Utterance]) -> None:
    (dataset,) = told(shards)["summary"]["datasets"]
    assert [found["key"] for found in dataset["packed"]["findings"]["silent"]["clips"]] == [clips[0].key]
    assert dataset["packed"]["left_out"] == [{"source": "notes.txt", "reason": "no sound"}]


def test_several_corpora_are_counted_together_and_their_speakers_apart(told: Any, shards: Path, others: Path) -> None:
    summary = told(shards, others)["summary"]
    assert {name: count["clips"] for name, count in summary["counts"]["corpus"].items()} == {"hums": 18, "tones": 35}
    assert {"hums/s1f", "tones/s1f"} < set(summary["counts"]["speaker"])
    classes = summary["classes_by_corpus"]
    assert classes["hums"] == {"angry": 6, "neutral": 6, "sad": 6}
    assert {name: sum(classes[corpus][name] for corpus in classes) for name in classes["hums"]} == {
        name: count["clips"] for name, count in summary["counts"]["class"].items()
    }


def test_a_label_set_counts_its_classes_and_what_has_none(told: Any, shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("name: two\nclasses: [angry, calm]\nmap: {neutral: calm, sad: null}\n")
    counts = told(shards, "--labels", path)["summary"]["counts"]["class"]
    assert {name: count["clips"] for name, count in counts.items()} == {"angry": 11, "calm": 12, "(no class)": 12}


@given(st.lists(st.floats(0.1, 4000.0), min_size=1, max_size=60))
def test_every_clip_is_in_one_bin_and_bins_are_few_and_equally_wide(seconds: list[float]) -> None:
    """But for the last, which ends with the longest clip: a five-minute clip does not squeeze all others into one bar."""
    length = np.array(seconds)
    empty = np.empty(0)
    index = ShardIndex((), (), _Lengths(length), (), (), empty, empty, empty, empty, empty)  # type: ignore[arg-type]
    found = stats.summarize_durations(index)
    assert sum(clips for _, _, clips in found.bins) == len(length) and len(found.bins) <= 14
    assert found.bins[0][0] <= length.min() and found.bins[-1][1] >= round(length.max() - 0.05, 1)
    widths = {round(high - low, 1) for low, high, _ in found.bins[:-1]}
    assert len(widths) <= 1


class _Lengths:
    def __init__(self, seconds: np.ndarray) -> None:
        self.seconds = seconds


@pytest.mark.parametrize("name", ["s2m-sad-1", "tones-s2m-sad-1"])
def test_a_clip_is_found_by_id_and_by_key_with_its_place_and_comes_out_as_it_went_in(
    told: Any, shards: Path, clips: list[Utterance], tmp_path: Path, name: str
) -> None:
    found = told(shards, "--clip", name, "--extract", tmp_path / "out.wav")["clip"]
    source = next(clip for clip in clips if clip.utterance_id == "s2m-sad-1")
    assert (found["speaker"], found["emotion"], found["session"]) == ("s2m", "sad", "s2")
    tar = Path(found["shard"]).read_bytes()
    assert tar[found["offset"] : found["offset"] + 4] == b"fLaC" and -30 < found["level_db"] < 0
    before, after = (soundfile.read(path, dtype="int16") for path in (source.audio_path, tmp_path / "out.wav"))
    assert before[1] == after[1] == 16_000 and np.array_equal(before[0], after[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "s2m-sad"], "ids that hold 's2m-sad': s2m-sad-0, s2m-sad-1"),
        (["--clip", "zzz"], "an id is, for instance, s1"),
        (["--clip", "s1f-sad-1"], r"2 clips have the id s1f-sad-1; give the key of one: .*hums-s1f-sad-1"),
        (["--clip", "s2m-sad-1", "--extract", "out.mp3"], "a name that ends in .wav"),
        (["--extract", "out.wav"], "name it with --clip ID"),
        (["--count", "3"], "are for --folds PROTOCOL"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_what_can(
    told: Any, shards: Path, others: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        told(shards, others, *arguments)


def test_verify_reads_every_byte(told: Any, shards: Path, others: Path, tmp_path: Path) -> None:
    assert told(others, "--verify") == {"damage": {str(others): []}, "code": 0}
    copy = tmp_path / "copy"
    for path in [path for path in others.rglob("*") if path.is_file()]:
        (copy / path.relative_to(others)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(others)).write_bytes(path.read_bytes())
    tar = next(copy.rglob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-2000] + b"x" + tar.read_bytes()[-1999:])
    damaged = told(copy, "--verify")
    assert damaged["code"] == 1 and "sha256" in damaged["damage"][str(copy)][0]


def test_sound_folds_are_shown_with_every_clip_tested_once(told: Any, shards: Path) -> None:
    found = told(shards, "--folds", "leave_one_session_out")
    folds = found["folds"]["folds"]
    assert found["code"] == 0 and len(folds) == 3 and not any("LEAK" in note for note in found["folds"]["notes"])
    assert sum(fold["test"]["clips"] for fold in folds) == 35
    assert all(sum(fold[part]["clips"] for part in ("train", "dev", "test")) == 35 for fold in folds)
    assert [fold["test"]["who"] for fold in folds] == ["session s1", "session s2", "session s3"]


def test_folds_that_cannot_be_are_refused_in_words(told: Any, others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(others, "--folds", "speaker_groups")
    assert found["code"] == 1 and "speaker" in found["folds"]["refused"]
    assert command.main([str(others), "--folds", "speaker_groups"]) == 1
    assert "These folds are not sound" in capsys.readouterr().out


def test_a_prescribed_split_with_known_voices_is_sound_by_its_own_definition_only(
    others: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(others), "--folds", "given_split"]) == 0
    out = capsys.readouterr().out
    assert "LEAK" in out and "sound only by the protocol's own definition" in out


def test_a_person_sees_the_same(
    shards: Path, others: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 80 columns: tables, a bar a bin, what packing found; and without a pack report, that it is not known."""
    monkeypatch.setenv("COLUMNS", "80")
    command.main([str(shards), str(others)])
    out = capsys.readouterr().out
    assert "53 clips" in out and "7 speakers" in out and "█" in out and "silent" in out and "left out" in out
    assert any(line.split() == ["angry", "6", "11", "17", "0.2"] for line in out.splitlines()), "hums, tones, clips, minutes"


def test_shards_without_their_report_can_be_inspected(told: Any, others: Path, tmp_path: Path) -> None:
    for path in [path for path in others.rglob("*") if path.is_file() and path.name != REPORT]:
        (tmp_path / path.relative_to(others)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.relative_to(others)).write_bytes(path.read_bytes())
    assert told(tmp_path)["summary"]["datasets"][0]["packed"] is None
