"""URDU: speakers come from the names, and how unevenly they speak is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import clip, macos_note

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parsers import urdu

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("Angry/SM1_F1_A001", "Angry/SM5_F1_A002", "happy/SF2_F1_H001", "Happy/SM5_F1_H002", "Sad/SF12_F3_S010"):
        clip(tmp_path / "URDU-Dataset-master" / f"{name}.wav", rate=44100)
    macos_note(tmp_path / "URDU-Dataset-master/Angry/SM1_F1_A001.wav")
    clip(tmp_path / "URDU-Dataset-master/Sad/SF1_F1_N001.wav")
    clip(tmp_path / "URDU-Dataset-master/Sad/intro.wav")
    return tmp_path


def test_a_name_says_speaker_gender_and_emotion_in_folders_of_any_case(tree: Path) -> None:
    clips = {u.utterance_id: u for u in urdu.parse(tree).utterances}
    assert len(clips) == 5
    assert (clips["SF2_F1_H001"].speaker, clips["SF2_F1_H001"].gender, clips["SF2_F1_H001"].emotion) == (
        "SF2",
        "female",
        "happy",
    )
    assert clips["SF12_F3_S010"].speaker == "SF12" and clips["SM5_F1_A002"].language == "ur"


def test_a_name_and_a_folder_that_disagree_are_left_out(tree: Path) -> None:
    reasons = {path.name: reason for path, reason in urdu.parse(tree).skipped}
    assert reasons.keys() == {"SF1_F1_N001.wav", "intro.wav"}
    assert reasons["SF1_F1_N001.wav"] == "the name says neutral, the folder Sad"


def test_uneven_speakers_are_told(tree: Path) -> None:
    warnings = urdu.parse(tree).warnings
    assert "4 speakers in the names; 29 in the published ones, 38 in the README" in warnings
    assert "2 of 5 clips are of SM5" in warnings
    assert "all angry clips are of male speakers" in warnings and not any("all happy" in text for text in warnings)
    assert "emotion neutral: 0 clips here, 100 in the published corpus" in warnings


def test_the_label_set_knows_every_emotion_and_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    assert set(labels.load_label_set(CONFIGS / "urdu_4.yaml").classes) == set(urdu.EMOTIONS.values())
    clip(tmp_path / "song.wav")
    with pytest.raises(UserError, match=r"Skipped: .*song.wav: the name is not"):
        urdu.parse(tmp_path)
