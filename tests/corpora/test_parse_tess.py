"""TESS: the file name alone says what a clip is, whatever its folder is called; two speakers only, and that is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import clip, macos_note

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parse_result import ParseResult
from ser_hpc.corpora.parsers import tess

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"
INNER = "TESS Toronto emotional speech set data"
CLIPS = (
    "OAF_angry/OAF_back_angry.wav",
    "OAF_Pleasant_surprise/OAF_back_ps.wav",
    "YAF_pleasant_surprised/YAF_germ_ps.wav",
    "YAF_Fear/YAF_germ_fear.wav",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The popular download: folders named at will, the tree inside itself, one name misspelt, one clip at 96 kHz."""
    root = tmp_path_factory.mktemp("tess")
    for name in CLIPS:
        clip(root / name, rate=96000 if "Fear" in name else 24414)
        clip(root / INNER / name, rate=24414)
    clip(root / "OAF_neutral" / "OA_bite_neutral.wav", rate=24414)
    clip(root / "yaf_SAD" / "yaf_Bite_SAD.WAV", rate=24414, subtype="FLOAT")
    macos_note(root / CLIPS[0])
    for name in ("OAF_back_joy.wav", "EAF_back_sad.wav", "OAF_sad.wav"):
        clip(root / "other" / name)
    return root


@pytest.fixture(scope="module")
def parsed(tree: Path) -> ParseResult:
    return tess.parse(tree)


def test_speaker_word_and_emotion_come_from_the_name_in_any_folder_and_case(parsed: ParseResult) -> None:
    rows = {u.utterance_id: (u.speaker, u.text_id, u.emotion, u.extra["age"]) for u in parsed.utterances}
    assert rows == {
        "OAF_back_angry": ("OAF", "back", "angry", "64"),
        "OAF_back_ps": ("OAF", "back", "pleasant_surprise", "64"),
        "OAF_bite_neutral": ("OAF", "bite", "neutral", "64"),
        "YAF_germ_fear": ("YAF", "germ", "fear", "26"),
        "YAF_germ_ps": ("YAF", "germ", "pleasant_surprise", "26"),
        "YAF_bite_sad": ("YAF", "bite", "sad", "26"),
    }
    assert {(u.gender, u.language) for u in parsed.utterances} == {("female", "en")}


def test_warnings_name_the_two_speakers_the_misspelt_name_the_copies_and_the_counts(parsed: ParseResult) -> None:
    assert "two speakers only" in parsed.warnings[0]
    (mended,) = [text for text in parsed.warnings if "is read as" in text]
    assert mended.endswith("OA_bite_neutral.wav is read as OAF_bite_neutral")
    assert any("4 clips occur again" in text and "1 of them has another size" in text for text in parsed.warnings)
    assert "emotion pleasant_surprise: 2 clips here, 400 in the published corpus" in parsed.warnings


def test_copies_and_foreign_names_are_skipped_with_their_reason(parsed: ParseResult) -> None:
    copies = [path for path, reason in parsed.skipped if "the same clip as" in reason]
    assert len(copies) == len(CLIPS) and all(INNER in path.parts for path in copies)
    foreign = {path.name: reason for path, reason in parsed.skipped if path not in copies}
    assert foreign.keys() == {"OAF_back_joy.wav", "EAF_back_sad.wav", "OAF_sad.wav"}
    assert all("<OAF or YAF>_<word>_<emotion>" in reason for reason in foreign.values())


def test_a_whole_copy_has_the_published_counts_and_tells_only_of_its_two_speakers(tmp_path: Path) -> None:
    words = [f"{first}{second}at" for first in "abcdefghijklmnopqrst" for second in "abcdefghij"]
    for name in (f"{speaker}_{word}_{emotion}.wav" for speaker in tess.AGES for word in words for emotion in tess.EMOTIONS):
        (tmp_path / name).touch()
    result = tess.parse(tmp_path)
    assert len(result.utterances) == 2800 and result.warnings == (tess.TWO_SPEAKERS,) and result.skipped == ()


def test_an_empty_folder_is_refused_with_the_layout_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OAF_back_angry"):
        tess.parse(tmp_path)


def test_the_label_set_has_the_emotions_of_the_corpus() -> None:
    assert set(labels.load_label_set(CONFIGS / "tess_7.yaml").classes) == set(tess.EMOTIONS.values())
