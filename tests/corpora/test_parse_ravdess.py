"""RAVDESS: seven numbers make a clip, of the speech alone; the doubled download gives each clip once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from trees import clip, macos_note

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parse_result import COPY, ParseResult, summarize_reasons
from ser_hpc.corpora.parsers import ravdess

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"
ANGRY, NEUTRAL, FEARFUL = "03-01-05-02-02-02-01", "03-01-01-01-01-01-02", "03-01-06-01-02-01-12"
INNER = "audio_speech_actors_01-24"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The popular download, its tree inside itself, with songs and videos of the full corpus beside it."""
    root = tmp_path_factory.mktemp("ravdess")
    for name in (ANGRY, NEUTRAL, FEARFUL):
        clip(root / f"Actor_{name[-2:]}" / f"{name}.wav", rate=48000, channels=2 if name == ANGRY else 1)
        clip(root / INNER / f"Actor_{name[-2:]}" / f"{name}.wav", rate=44100 if name == NEUTRAL else 48000)
    macos_note(root / "Actor_01" / f"{ANGRY}.wav")
    clip(root / "__MACOSX" / f"{ANGRY}.wav")
    clip(root / "Actor_01" / "03-02-05-01-01-01-01.wav")
    clip(root / "Actor_01" / "01-01-05-01-01-01-01.wav", rate=44100)
    (root / "Actor_01" / "02-01-05-01-01-01-01.mp4").touch()
    for name in (
        "03-01-09-01-01-01-01",
        "03-01-05-03-01-01-01",
        "03-01-05-01-01-01-25",
        "03-01-05-01-01-01",
        "04-01-05-01-01-01-01",
    ):
        clip(root / "Actor_01" / f"{name}.wav")
    return root


@pytest.fixture(scope="module")
def parsed(tree: Path) -> ParseResult:
    return ravdess.parse(tree)


def test_the_numbers_of_a_name_become_fields(parsed: ParseResult) -> None:
    rows = [(u.utterance_id, u.speaker, u.gender, u.emotion, u.intensity, u.text_id, u.extra) for u in parsed.utterances]
    assert rows == [
        (ANGRY, "01", "male", "angry", "strong", "02", {"repetition": "02"}),
        (NEUTRAL, "02", "female", "neutral", "normal", "01", {"repetition": "01"}),
        (FEARFUL, "12", "female", "fearful", "normal", "02", {"repetition": "01"}),
    ]
    assert {u.language for u in parsed.utterances} == {"en"}


def test_of_the_doubled_tree_the_outer_copy_is_used_and_the_other_told(tree: Path, parsed: ParseResult) -> None:
    assert all(u.audio_path.parent.parent == tree for u in parsed.utterances)
    copies = [path for path, reason in parsed.skipped if "the same clip as" in reason]
    assert len(copies) == 3 and all(INNER in path.parts for path in copies)
    assert any("3 clips occur again" in text and "2 of them have another size" in text for text in parsed.warnings)
    assert "emotion angry: 1 clip here, 192 in the published corpus" in parsed.warnings


def test_songs_videos_and_unknown_numbers_are_skipped_with_their_reason(parsed: ParseResult) -> None:
    reasons = {path.name: reason for path, reason in parsed.skipped if "the same clip as" not in reason}
    expected = {
        "03-02-05-01-01-01-01.wav": "channel 02 is song",
        "01-01-05-01-01-01-01.wav": "modality 01 is sound and picture",
        "02-01-05-01-01-01-01.mp4": "modality 02 is picture only",
        "03-01-09-01-01-01-01.wav": "unknown emotion '09'; known: 01, 02",
        "03-01-05-03-01-01-01.wav": "unknown intensity '03'",
        "03-01-05-01-01-01-25.wav": "unknown actor '25'",
        "03-01-05-01-01-01.wav": "not seven numbers",
        "04-01-05-01-01-01-01.wav": "unknown modality '04'",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items())


def test_a_whole_copy_has_the_published_counts_and_nothing_to_tell(tmp_path: Path) -> None:
    """The corpus is a full cross of its factors, but neutral is never strong."""
    for actor in ravdess.ACTORS:
        (tmp_path / f"Actor_{actor}").mkdir()
        for take in range(8 * 2 * 2 * 2):
            emotion, intensity, statement, repetition = take // 8 + 1, take // 4 % 2 + 1, take // 2 % 2 + 1, take % 2 + 1
            if (emotion, intensity) != (1, 2):
                name = f"03-01-0{emotion}-0{intensity}-0{statement}-0{repetition}-{actor}.wav"
                (tmp_path / f"Actor_{actor}" / name).touch()
    result = ravdess.parse(tmp_path)
    assert len(result.utterances) == 1440 and result.warnings == () and result.skipped == ()
    assert Counter(u.gender for u in result.utterances) == {"female": 720, "male": 720}


def test_songs_alone_are_refused_with_the_layout_expected(tmp_path: Path) -> None:
    clip(tmp_path / "03-02-05-01-01-01-01.wav")
    with pytest.raises(UserError, match=r"no utterance found; expected .*only 01, speech, is read"):
        ravdess.parse(tmp_path)


def test_the_label_set_has_the_emotions_of_the_corpus() -> None:
    assert set(labels.load_label_set(CONFIGS / "ravdess_8.yaml").classes) == set(ravdess.EMOTIONS.values())


def test_files_left_out_are_told_by_kind_with_three_of_them() -> None:
    """Not 1,440 names of a doubled tree; what differs in numbers and names alone is of one kind, what is single stands out."""
    copies = [(Path(f"copy/{number}.wav"), COPY) for number in range(1440)]
    lines = [(Path("labels.csv"), f"line {number}: no recording x_{number}.wav") for number in range(5)]
    told = summarize_reasons([(Path("odd.wav"), "the name is odd"), *lines, *copies])
    assert told[0].splitlines() == [
        f"1,440 files: {COPY}",
        *(f"  copy/{number}.wav" for number in range(3)),
        "  and 1,437 more",
    ]
    assert told[1].startswith("5 files:\n  labels.csv: line 0: no recording x_0.wav\n") and told[1].endswith("and 2 more")
    assert told[2:] == ["odd.wav: the name is odd"]
