"""MSP-Podcast: labels of old and new releases become the same fields, and no recording or line is dropped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import clip, macos_note

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parse_result import ParseResult
from ser_hpc.corpora.parsers import msp_podcast

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"
HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
LINES = """\
MSP-PODCAST_0001_0008.wav,N,2.0,4.0,3.8,127,Male,Train
MSP-PODCAST_0001_0019.wav,A,5.2,2.4,5.0,Unknown,Unknown,Train
MSP-PODCAST_0002_0033.wav,X,4.6,,3.8,43,Female,{dev}
MSP-PODCAST_0006_0017.wav,H,5.4,6.2,5.6,46,Female,Test1
MSP-PODCAST_0006_0020_0003.wav,C,nan,3.0,4.4,12,Male,Test2
MSP-PODCAST_0007_0001.wav,S,2.2,2.4,3.0,9,Female,Train
MSP-PODCAST_0007_0002.wav,Q,2.2,2.4,3.0,9,Female,Train
MSP-PODCAST_0007_0003.wav,S,2.2,low,3.0,9,Female,Train
MSP-PODCAST_0007_0004.wav,S,2.2,2.4,3.0,9,Female,Holdout
"""
MISSING = "MSP-PODCAST_0007_0001"


def make_release(root: Path, table: str, audio: str, dev: str) -> Path:
    """A release with a recording for every line but one, one without a line (Test3), one stereo, one of them twice."""
    (root / "Labels").mkdir(parents=True)
    (root / "Labels" / table).write_text(HEADER + LINES.format(dev=dev))
    for name in (line.split(".")[0] for line in LINES.splitlines()):
        if name != MISSING:
            clip(root / audio / f"{name}.wav", channels=2 if name.endswith("_0017") else 1)
    clip(root / audio / "MSP-PODCAST_test3_0001.wav")
    clip(root / "copy" / audio / "MSP-PODCAST_0001_0008.wav", rate=8000)
    macos_note(root / audio / "MSP-PODCAST_0001_0008.wav")
    return root


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> ParseResult:
    return msp_podcast.parse(make_release(tmp_path_factory.mktemp("new"), "labels_consensus.csv", "Audios", "Development"))


def test_a_line_of_labels_becomes_fields(parsed: ParseResult) -> None:
    rows = [(u.utterance_id[12:], u.emotion, u.speaker, u.gender, u.split, u.extra["split_set"]) for u in parsed.utterances]
    assert rows == [
        ("0001_0008", "neutral", "127", "male", "train", "Train"),
        ("0001_0019", "angry", "unknown", "", "train", "Train"),
        ("0002_0033", "no_agreement", "43", "female", "dev", "Development"),
        ("0006_0017", "happy", "46", "female", "test", "Test1"),
        ("0006_0020_0003", "contempt", "12", "male", "test", "Test2"),
    ]
    assert [u.extra["podcast"] for u in parsed.utterances] == ["0001", "0001", "0002", "0006", "0006"]


def test_dimensions_are_arousal_valence_dominance_and_may_be_missing(parsed: ParseResult) -> None:
    values = [(u.arousal, u.valence, u.dominance) for u in parsed.utterances]
    assert values[0] == (2.0, 4.0, 3.8)
    assert values[2] == (4.6, None, 3.8) and values[4] == (None, 3.0, 4.4)


def test_old_and_new_releases_are_read_alike(tmp_path: Path, parsed: ParseResult) -> None:
    """Another spelling of the table, another folder of recordings, another name of the development part, a folder around it."""
    make_release(tmp_path / "MSP-PODCAST-Publish-1.6", "labels_concensus.csv", "Audio", "Validation")
    old = msp_podcast.parse(tmp_path)
    assert [(u.utterance_id, u.emotion, u.split) for u in old.utterances] == [
        (u.utterance_id, u.emotion, u.split) for u in parsed.utterances
    ]
    assert [u.extra["split_set"] for u in old.utterances if u.split == "dev"] == ["Validation"]


def test_lines_without_recording_recordings_without_line_and_copies_are_skipped_with_their_reason(parsed: ParseResult) -> None:
    reasons = [(path.name, reason) for path, reason in parsed.skipped]
    expected = [
        ("MSP-PODCAST_0001_0008.wav", "the same name as"),
        ("labels_consensus.csv", f"line 7: no recording {MISSING}.wav"),
        ("labels_consensus.csv", "line 8: MSP-PODCAST_0007_0002: unknown EmoClass 'Q'; known: A, S, H"),
        ("labels_consensus.csv", "line 9: MSP-PODCAST_0007_0003: EmoAct, EmoVal and EmoDom must be numbers"),
        ("labels_consensus.csv", "line 10: MSP-PODCAST_0007_0004: unknown Split_Set 'Holdout'"),
        ("MSP-PODCAST_test3_0001.wav", "no line in labels_consensus.csv"),
    ]
    assert [name for name, _ in reasons] == [name for name, _ in expected]
    assert all(part in reason for (_, reason), (_, part) in zip(reasons, expected, strict=True))


def test_unknown_speakers_and_the_counts_of_the_release_are_told(parsed: ParseResult) -> None:
    speakers, counts = parsed.warnings
    assert "1 clip of unknown speakers" in speakers
    assert "Development 1, Test1 1, Test2 1, Train 2; in release 1.11: Train 84030" in counts


def test_a_clip_labelled_twice_is_refused(tmp_path: Path) -> None:
    make_release(tmp_path, "labels_consensus.csv", "Audios", "Development")
    with (tmp_path / "Labels" / "labels_consensus.csv").open("a") as file:
        file.write("MSP-PODCAST_0001_0008.wav,A,2.0,4.0,3.8,127,Male,Train\n")
    with pytest.raises(UserError, match=r"must be unique.*MSP-PODCAST_0001_0008"):
        msp_podcast.parse(tmp_path)


def test_missing_labels_columns_or_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no labels_consensus\.csv or labels_concensus\.csv"):
        msp_podcast.parse(tmp_path)
    table = tmp_path / "labels_consensus.csv"
    table.write_text(HEADER + LINES.format(dev="Development"))
    with pytest.raises(UserError, match=r"no utterance found; .*no recording MSP-PODCAST_0001_0008"):
        msp_podcast.parse(tmp_path)
    table.write_text(HEADER.replace("SpkrID,", ""))
    with pytest.raises(UserError, match="no column SpkrID"):
        msp_podcast.parse(tmp_path)


@pytest.mark.parametrize("name", ["msp_podcast_4", "msp_podcast_8"])
def test_label_sets_know_every_emotion_of_the_corpus(name: str) -> None:
    known = labels.load_label_set(CONFIGS / f"{name}.yaml")
    assert {*known.classes, *known.mapping} == set(msp_podcast.EMOTIONS.values())


@pytest.mark.parametrize("form", ["columns", "detail"])
def test_annotators_votes_are_soft_labels(tmp_path: Path, form: str) -> None:
    """In the forms of older and of newer releases; a word of their own is other."""
    make_release(tmp_path, "labels_consensus.csv", "Audios", "Development")
    said = ["Angry", "Neutral", "Neutral", "Other-curious", "Surprise", "Angry"]
    name = "MSP-PODCAST_0001_0008.wav"
    table = ["FileName,Workers,EmoClass_Major", *(f"{name},WORKER{i},{word}" for i, word in enumerate(said))]
    if form == "detail":
        table = [
            "FileName,EmoDetail",
            *(f'{name},"WORKER{i}; {word}; {word},Annoyed; A:4; V:4; D:4; "' for i, word in enumerate(said)),
        ]
    (tmp_path / "Labels" / "labels_detailed.csv").write_text("\n".join(table) + "\n")
    of = {u.utterance_id: u.extra.get("votes") for u in msp_podcast.parse(tmp_path).utterances}
    assert of["MSP-PODCAST_0001_0008"] == "angry=2 neutral=2 other=1 surprised=1"
    assert of["MSP-PODCAST_0001_0019"] is None
    (tmp_path / "Labels" / "labels_detailed.csv").write_text("FileName,Primary\nMSP-PODCAST_0001_0008.wav,Angry\n")
    assert any("labels_detailed.csv: no votes in a column" in warning for warning in msp_podcast.parse(tmp_path).warnings)
