"""SAVEE: both of its layouts give the same clips, and `sa` and `su` are no s with a letter too many."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import clip, macos_note

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parsers import savee

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"
NAMES = ("a01", "d02", "f03", "h04", "n30", "sa05", "su06")


def in_folders(root: Path) -> Path:
    for name in NAMES:
        clip(root / "AudioData" / "DC" / f"{name}.wav", rate=44100)
    clip(root / "AudioData" / "KL" / "sa05.wav", rate=44100)
    return root


def in_one_folder(root: Path) -> Path:
    for name in NAMES:
        clip(root / "ALL" / f"DC_{name}.wav", rate=44100)
    clip(root / "ALL" / "KL_sa05.wav", rate=44100)
    return root


def test_both_layouts_give_the_same_clips(tmp_path: Path) -> None:
    published, flat = savee.parse(in_folders(tmp_path / "a")), savee.parse(in_one_folder(tmp_path / "b"))
    rows = [
        [(u.utterance_id, u.speaker, u.text_id, u.emotion, u.gender) for u in result.utterances] for result in (published, flat)
    ]
    assert rows[0] == rows[1]
    assert rows[0][0] == ("DC_a01", "DC", "a01", "anger", "male")
    assert [u.emotion for u in published.utterances] == [
        "anger",
        "disgust",
        "fear",
        "happiness",
        "neutral",
        "sadness",
        "surprise",
        "sadness",
    ]


def test_both_layouts_in_one_root_are_copies_of_each_other(tmp_path: Path) -> None:
    result = savee.parse(in_one_folder(in_folders(tmp_path)))
    assert len(result.utterances) == 8 and len(result.skipped) == 8
    assert all(u.audio_path.parent.name == "ALL" for u in result.utterances), "the copy nearest to the root is used"
    assert "emotion sadness: 2 clips here, 60 in the published corpus" in result.warnings, "a copy counts once"


def test_case_does_not_matter_and_what_has_no_speaker_or_emotion_is_skipped(tmp_path: Path) -> None:
    clip(tmp_path / "dc" / "A01.WAV", rate=44100, subtype="PCM_24")
    macos_note(tmp_path / "dc" / "A01.WAV")
    for name in ("s05.wav", "a1.wav", "XY_a01.wav"):
        clip(tmp_path / "dc" / name)
    clip(tmp_path / "somebody" / "a01.wav")
    result = savee.parse(tmp_path)
    assert [u.utterance_id for u in result.utterances] == ["DC_a01"]
    reasons = {f"{path.parent.name}/{path.name}": reason for path, reason in result.skipped}
    assert reasons.keys() == {"dc/s05.wav", "dc/a1.wav", "dc/XY_a01.wav", "somebody/a01.wav"}
    assert "the folder 'somebody' is none of DC, JE, JK and KL" in reasons["somebody/a01.wav"]


def test_a_whole_copy_has_the_published_counts_and_nothing_to_tell(tmp_path: Path) -> None:
    for speaker in savee.SPEAKERS:
        (tmp_path / speaker).mkdir()
        for code in savee.EMOTIONS:
            for number in range(1, 31 if code == "n" else 16):
                (tmp_path / speaker / f"{code}{number:02d}.wav").touch()
    result = savee.parse(tmp_path)
    assert len(result.utterances) == 480 and result.warnings == () and result.skipped == ()


def test_a_folder_without_clips_is_refused_with_the_layout_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as in DC/a01"):
        savee.parse(tmp_path)


def test_the_label_set_has_the_emotions_of_the_corpus() -> None:
    assert set(labels.load_label_set(CONFIGS / "savee_7.yaml").classes) == set(savee.EMOTIONS.values())
