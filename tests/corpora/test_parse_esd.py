"""ESD: folder and number must say the same emotion, a number names the sentence, and the speaker the language."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import clip, macos_note

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parse_result import ParseResult
from ser_hpc.corpora.parsers import esd

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One speaker with the parts train, evaluation and test, one without, one in folders of another case."""
    root = tmp_path_factory.mktemp("esd") / "Emotion Speech Dataset"
    for part, number in (("train", 1), ("evaluation", 2), ("test", 3)):
        clip(root / "0001" / "Neutral" / part / f"0001_{number:06d}.wav")
    clip(root / "0001" / "Surprise" / "train" / "0001_001750.wav")
    clip(root / "0011" / "Angry" / "0011_000351.wav")
    clip(root / "0011" / "Happy" / "0011_000701.wav", subtype="PCM_24")
    clip(root / "0016" / "sad" / "0016_001052.WAV")
    (root / "0001" / "0001.txt").write_text("0001_000001\t今天天气很好\t中立\n", encoding="utf-8")
    macos_note(root / "0011" / "Angry" / "0011_000351.wav")
    clip(root / "0011" / "Sad" / "0011_000352.wav")
    clip(root / "0011" / "Angry" / "0011_001751.wav")
    clip(root / "0011" / "Angry" / "0021_000351.wav")
    clip(root / "0011" / "Bored" / "0011_000353.wav")
    clip(root / "0011" / "Angry" / "noise.wav")
    return root


@pytest.fixture(scope="module")
def parsed(tree: Path) -> ParseResult:
    return esd.parse(tree)


def test_speaker_number_and_folders_become_fields(parsed: ParseResult) -> None:
    rows = [(u.utterance_id, u.emotion, u.gender, u.language, u.text_id, u.split) for u in parsed.utterances]
    assert rows == [
        ("0001_000002", "neutral", "female", "zh", "zh002", "dev"),
        ("0001_000003", "neutral", "female", "zh", "zh003", "test"),
        ("0001_000001", "neutral", "female", "zh", "zh001", "train"),
        ("0001_001750", "surprise", "female", "zh", "zh350", "train"),
        ("0011_000351", "angry", "male", "en", "en001", ""),
        ("0011_000701", "happy", "male", "en", "en001", ""),
        ("0016_001052", "sad", "female", "en", "en002", ""),
    ]
    assert all(u.speaker == u.utterance_id[:4] for u in parsed.utterances)


def test_what_contradicts_itself_or_is_unknown_is_skipped_with_its_reason(parsed: ParseResult) -> None:
    reasons = {path.name: reason for path, reason in parsed.skipped}
    expected = {
        "0011_000352.wav": "lies in the folder 'Sad', but its number is one of angry",
        "0011_001751.wav": "number 1751 is not one of 1 to 1750",
        "0021_000351.wav": "unknown speaker '0021'",
        "0011_000353.wav": "the folder 'Bored' is no emotion; known: neutral",
        "noise.wav": "the name is not <speaker>_<number>",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items())


def test_a_partial_copy_is_told_with_both_numbers_and_a_doubled_one_counts_once(tmp_path: Path) -> None:
    used = clip(tmp_path / "0011" / "Angry" / "0011_000351.wav")
    copy = clip(tmp_path / "again" / "0011" / "Angry" / "0011_000351.wav", rate=44100, channels=2)
    result = esd.parse(tmp_path)
    assert [u.audio_path for u in result.utterances] == [used]
    assert [path for path, _ in result.skipped] == [copy]
    assert "emotion angry: 1 clip here, 7,000 in the published corpus" in result.warnings
    assert "speaker 0020: 0 clips here, 1,750 in the published corpus" in result.warnings


def test_known_counts_agree_with_each_other_and_with_the_label_set() -> None:
    assert sum(esd.CLIPS_BY_EMOTION.values()) == sum(esd.CLIPS_BY_SPEAKER.values()) == 35_000
    english = {speaker for speaker in esd.SPEAKERS if speaker >= esd.FIRST_ENGLISH}
    assert len(esd.MEN & english) == len(esd.MEN - english) == 5 and len(english) == 10
    assert set(labels.load_label_set(CONFIGS / "esd_5.yaml").classes) == set(esd.EMOTIONS)


def test_a_folder_without_clips_is_refused_with_the_layout_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0011_000351"):
        esd.parse(tmp_path)
