"""Emo-DB: names become speakers, texts and emotions; what is no clip is listed; and the whole corpus has its known counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels, registry
from ser_hpc.corpora.parsers import emodb

REAL = Path(__file__).parents[2].parent / "shared" / "corpora" / "emodb"
CONFIGS = Path(__file__).parents[2] / "configs" / "labels"


def make_files(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize("inside", ["wav", "."])
def test_a_name_says_it_all_and_the_root_may_hold_wav_or_the_wavs(tmp_path: Path, inside: str) -> None:
    make_files(tmp_path / inside, "16b03Ta.wav", "03a01Fa.wav")
    first, second = emodb.parse(tmp_path).utterances
    assert (first.utterance_id, first.speaker, first.gender, first.text_id) == ("03a01Fa", "03", "male", "a01")
    assert (second.emotion, second.speaker, second.gender, second.session) == ("sadness", "16", "female", "")


def test_what_is_no_clip_is_skipped_with_its_reason_and_macos_notes_are_no_files_of_the_corpus(tmp_path: Path) -> None:
    make_files(tmp_path, "03a01Fa.wav", "03a01Xa.wav", "77a01Fa.wav", "03a01F.wav", "README.md", "._03a01Fa.wav")
    result = emodb.parse(tmp_path)
    reasons = {path.name: reason for path, reason in result.skipped}
    assert [u.utterance_id for u in result.utterances] == ["03a01Fa"]
    assert reasons.keys() == {"03a01Xa.wav", "77a01Fa.wav", "03a01F.wav"}
    assert "unknown emotion letter 'X'; known: W, L" in reasons["03a01Xa.wav"]
    assert "unknown speaker '77'" in reasons["77a01Fa.wav"]


def test_a_partial_copy_is_told_with_both_numbers(tmp_path: Path) -> None:
    make_files(tmp_path, "03a01Fa.wav")
    warnings = emodb.parse(tmp_path).warnings
    assert "emotion happiness: 1 clip here, 71 in the published corpus" in warnings
    assert "speaker 16: 0 clips here, 71 in the published corpus" in warnings


def test_missing_empty_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    make_files(tmp_path / "foreign", "song.wav")
    (tmp_path / "empty").mkdir()
    for name, message in (("nowhere", "does not exist"), ("empty", "no utterance found"), ("foreign", "Skipped: .*song.wav")):
        with pytest.raises(UserError, match=message):
            emodb.parse(tmp_path / name)
    with pytest.raises(UserError, match="is not a folder"):
        emodb.parse(tmp_path / "foreign" / "song.wav")


def test_known_counts_agree_with_each_other_and_with_the_label_set() -> None:
    assert sum(emodb.CLIPS_BY_EMOTION.values()) == sum(emodb.CLIPS_BY_SPEAKER.values()) == 535
    assert emodb.CLIPS_BY_SPEAKER.keys() == emodb.GENDERS.keys()
    assert set(labels.load_label_set(CONFIGS / "emodb_7.yaml").classes) == set(emodb.EMOTIONS.values())


@pytest.mark.skipif(not REAL.is_dir(), reason="Emo-DB is not beside the project")
def test_the_real_corpus_is_whole() -> None:
    result = emodb.parse(REAL)
    assert len(result.utterances) == 535 and result.warnings == () and result.skipped == ()
    assert Counter(u.gender for u in result.utterances) == {"female": 302, "male": 233}
    assert not any(u.speaker == "08" and u.emotion == "disgust" for u in result.utterances)


def test_an_unknown_corpus_is_refused_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"known: emodb, iemocap, .*; did you mean iemocap"):
        registry.get_parser("iemocp")
    assert registry.get_parser("csv") is registry.get_parser("jsonl")
