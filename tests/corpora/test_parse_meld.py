"""MELD: splits stay apart although numbers begin again, mended clips replace spoilt ones, and known defects are told."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from trees import clip, macos_note

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parsers import meld

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"


def table(root: Path, split: str, *rows: tuple[str, str, int, int]) -> None:
    """A label file of (speaker, emotion, dialogue, utterance)."""
    with (root / f"{split}_sent_emo.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Sr No.", *meld.COLUMNS, "StartTime", "EndTime"])
        for number, (speaker, emotion, dialogue, turn) in enumerate(rows, 1):
            writer.writerow([number, "Don\x92t, Joey!", speaker, emotion, "neutral", dialogue, turn, 8, 21, "0:0", "0:1"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    table(
        tmp_path, "train", ("Joey", "anger", 0, 0), ("Joey", "joy", 1, 0), ("Man", "neutral", 125, 3), ("Joey", "bliss", 9, 9)
    )
    table(tmp_path, "dev", ("Rachel", "sadness", 0, 0), ("Rachel", "fear", 110, 7))
    table(tmp_path, "test", ("Joey", "neutral", 0, 0), ("Mona", "disgust", 38, 4), ("Mona", "disgust", 38, 4))
    clip(tmp_path / "train_splits/dia0_utt0.wav", rate=48000, channels=2)
    macos_note(tmp_path / "train_splits/dia0_utt0.wav")
    (tmp_path / "train_splits/dia1_utt0.mp4").write_bytes(b"video")
    clip(tmp_path / "dev_splits_complete/dia0_utt0.flac", rate=48000)
    clip(tmp_path / "output_repeated_splits_test/dia0_utt0.wav")
    clip(tmp_path / "output_repeated_splits_test/final_videos_testdia0_utt0.wav")
    clip(tmp_path / "output_repeated_splits_test/dia38_utt4.wav")
    clip(tmp_path / "output_repeated_splits_test/dia99_utt0.wav")
    clip(tmp_path / "elsewhere/dia0_utt0.wav")
    return tmp_path


def test_one_number_in_three_splits_is_three_clips(tree: Path) -> None:
    clips = {u.utterance_id: u for u in meld.parse(tree).utterances}
    assert clips.keys() == {"train_dia0_utt0", "dev_dia0_utt0", "test_dia0_utt0", "test_dia38_utt4"}
    assert [clips[f"{split}_dia0_utt0"].split for split in meld.SPLITS] == list(meld.SPLITS)
    joey = clips["train_dia0_utt0"]
    assert (joey.speaker, joey.emotion, joey.gender, joey.audio_path.parent.name) == ("Joey", "anger", "male", "train_splits")
    assert joey.extra["dialogue"] == "train_dia0" and joey.extra["season"] == "8" and joey.extra["transcript"].endswith("Joey!")


def test_the_mended_clip_of_the_test_folder_is_used(tree: Path) -> None:
    result = meld.parse(tree)
    used = next(u for u in result.utterances if u.utterance_id == "test_dia0_utt0")
    assert used.audio_path.name == "final_videos_testdia0_utt0.wav"
    spoilt = tree / "output_repeated_splits_test/dia0_utt0.wav"
    assert (spoilt, "final_videos_testdia0_utt0.wav is its mended version") in result.skipped


def test_what_cannot_be_used_is_skipped_and_a_video_says_how_to_take_its_sound(tree: Path) -> None:
    reasons = " | ".join(f"{path.name}: {reason}" for path, reason in meld.parse(tree).skipped)
    assert "train_dia1_utt0: only its video; take the sound from it: ffmpeg -i " in reasons
    assert "train_dia125_utt3: no recording (its video is corrupt" in reasons
    assert "dev_dia110_utt7: no recording (its video is missing" in reasons
    assert "train_dia9_utt9: unknown emotion 'bliss'" in reasons
    assert "test_dia38_utt4 is listed twice" in reasons
    assert "dia99_utt0.wav: has no usable label" in reasons
    assert "dia0_utt0.wav: is in no folder of one split" in reasons
    assert "._dia0" not in reasons


def test_known_voices_in_the_test_split_and_the_five_minute_clip_are_told(tree: Path) -> None:
    warnings = meld.parse(tree).warnings
    assert any(text.startswith("1 of 2 test speakers occur in training too") for text in warnings)
    assert any(text.startswith("test_dia38_utt4: it lasts 305 s") for text in warnings)
    assert "split train: 1 clip here, 9,988 in the published corpus" in warnings


def test_videos_alone_are_refused_with_the_way_out(tmp_path: Path) -> None:
    table(tmp_path, "dev", ("Joey", "joy", 1, 0))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/dia1_utt0.mp4").write_bytes(b"video")
    with pytest.raises(UserError, match=r"no utterance found.*ffmpeg -i .*dia1_utt0.mp4"):
        meld.parse(tmp_path)


def test_a_foreign_table_and_a_tree_without_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no train_sent_emo\.csv"):
        meld.parse(tmp_path)
    (tmp_path / "train_sent_emo.csv").write_text("Utterance,Mood\nhello,fine\n")
    with pytest.raises(UserError, match="no column Speaker"):
        meld.parse(tmp_path)


def test_the_label_set_knows_every_emotion() -> None:
    assert set(labels.load_label_set(CONFIGS / "meld_7.yaml").classes) == meld.EMOTIONS
