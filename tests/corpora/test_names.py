"""A name means one person: spellings that may be one are found, words for "not known" are read alike by every reader."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import table
from trees import clip as recording

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.formats import table as tables
from ser_hpc.corpora.formats.column_names import make_annotation
from ser_hpc.corpora.labels import label_set_as_annotated
from ser_hpc.corpora.name_overrides import NameOverrides
from ser_hpc.corpora.names import UNKNOWN, find_ambiguous, is_unknown
from ser_hpc.corpora.utterance import Metadata, Utterance
from ser_hpc.protocols.folds import FoldPlan, plan_folds

NFC, NFD = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")
ONE_NAME = [
    ("Anna", "anna ", "ANNA"),
    ("01", "1", "001", "1.0", "1.00"),
    (NFC, NFD),
    ("a b", "a\u00a0b", "ab", "a\u200bb", "a\ufeffb"),
    ("ﬁ", "fi"),
    ("straße", "STRASSE"),
    ("Ses01F", "ses1F"),
    ("spk_007", "SPK_7"),
    ("١٢", "12", "\uff10\uff11\uff12"),
    ("an\u034fna", "anna", "an\ufe0fna", "an\u3164na"),
]
OTHERS = [("10", "100", "1"), ("1.5", "15", "1.05"), ("anna", "ana"), ("0", "o"), ("s1", "s11"), ("F1", "M1"), ("", "x")]


@pytest.mark.parametrize("names", ONE_NAME, ids=repr)
def test_spellings_of_one_name_are_found(names: tuple[str, ...]) -> None:
    assert find_ambiguous([*names, "somebody", "else"]) == [tuple(sorted(names))]


@pytest.mark.parametrize("names", OTHERS, ids=repr)
def test_other_names_are_left_alone(names: tuple[str, ...]) -> None:
    assert find_ambiguous(names) == []


@pytest.mark.parametrize("word", ["n/a", "UNK", " ? ", "none", "NaN", "", "Unknown", "null", "\u200b"])
def test_every_reader_knows_the_words_for_not_known(word: str, tmp_path: Path) -> None:
    assert is_unknown(word)
    assert Utterance("c", "u", Path("a.wav"), word, "happy", session=word).speaker == "unknown"
    assert Utterance("c", "u", Path("a.wav"), "s", "happy", session=word, text_id=word).session == ""
    assert Utterance("c", "u", Path("a.wav"), **make_annotation({"speaker": word, "emotion": "sad"}, {})).speaker == "unknown"
    for name in ("a.wav", "b.wav"):
        recording(tmp_path / name)
    (tmp_path / "t.csv").write_text(
        f"audio,emotion,speaker,session,gender,split,language,arousal\na.wav,sad,{word},{word},{word},{word},{word},{word}\n"
        "b.wav,sad,bob,,,,,\n"
    )
    parsed = tables.parse(tmp_path / "t.csv")
    assert [clip.speaker for clip in parsed.utterances] == ["unknown", "bob"]
    assert parsed.utterances[0].gender == parsed.utterances[0].session == parsed.utterances[0].language == ""
    assert any("1 of 2 clips are of speakers not known" in warning for warning in parsed.warnings)


def test_names_are_read_in_nfc_and_paths_as_they_are() -> None:
    path = Path(f"/x/{NFD}.wav")
    clip = Utterance("c", "u", path, NFD, NFD, session=NFD, text_id=NFD)
    assert (clip.speaker, clip.emotion, clip.session, clip.text_id) == (NFC,) * 4
    assert clip.audio_path == path


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "a\tb", "\ud800"])
def test_names_hold_no_control_characters(name: str) -> None:
    """They would paint the terminal, break tables, or be no text at all."""
    for column in ("speaker", "emotion", "session"):
        with pytest.raises(UserError, match=f"{column} .* holds control characters"):
            Utterance("c", "u", Path("a.wav"), **({"speaker": "s", "emotion": "happy"} | {column: name}))


def corpus(*speakers: str, of: str = "tiny", **more: Any) -> list[dict[str, Any]]:
    """Four clips of each speaker, two of each emotion."""
    return [
        {"corpus": of, "speaker": speaker, "emotion": ("happy", "sad")[i % 2], "utterance_id": f"{number}-{i}"} | more
        for number, speaker in enumerate(speakers)
        for i in range(4)
    ]


def planned(metadata: Metadata, protocol: str = "leave_one_speaker_out", **more: Any) -> FoldPlan:
    return plan_folds(metadata, label_set_as_annotated(metadata), protocol, None, **more)


def test_a_speaker_under_two_spellings_is_refused_when_planning_until_it_is_said_who_is_who() -> None:
    metadata = table(corpus("Anna", "anna", "Bert", "Carla", "01", "1"))
    with pytest.raises(UserError, match=r"'Anna' = 'anna' of tiny\. .*speaker_aliases='\{tiny/1: tiny/01\}'") as refused:
        planned(metadata)
    assert "'01' = '1' of tiny" in str(refused.value)
    said = {"tiny/anna": "tiny/Anna", "tiny/1": None}
    folds = planned(metadata, speaker_aliases=said)
    assert [fold.test.speakers for fold in folds.folds] == [("01",), ("1",), ("Anna",), ("Bert",), ("Carla",)]
    both = next(fold for fold in folds.folds if fold.test.speakers == ("Anna",)).test
    assert set(metadata.speaker[both.positions]) == {"Anna", "anna"}, "one person, never on two sides"
    distinct = frozenset(("tiny", "speaker", name) for name in ("Anna", "anna", "01", "1"))
    assert len(planned(metadata, distinct=distinct).folds) == 6
    for slip in ({"tiny/Hanna": None}, {"tiny/anna": "tiny/Hanna"}, {"tyni/anna": "tiny/Anna"}, {"tiny/anna": "tyni/Anna"}):
        with pytest.raises(UserError, match=r"there is no speaker (tiny/Hanna|tyni/.nna); write CORPUS/NAME"):
            planned(metadata, speaker_aliases=slip)


def test_words_for_not_known_in_shards_that_exist_are_no_speakers() -> None:
    metadata = table(corpus("a", "b", "c", "n/a", "?", "NaN"))
    folds = planned(metadata)
    assert sorted(fold.test.speakers for fold in folds.folds) == [("a",), ("b",), ("c",)]
    assert any("12 of 24 clips are of unknown speakers" in note for note in folds.notes)


def test_sessions_that_may_be_one_are_refused_where_sessions_are_left_out() -> None:
    rows = [row | {"session": session} for s, session in zip("abcd", ("1", "01", "2", "3"), strict=True) for row in corpus(s)]
    metadata = table([row | {"utterance_id": f"u{i}"} for i, row in enumerate(rows)])
    with pytest.raises(UserError, match="these may be one each: '01' = '1' of tiny"):
        planned(metadata, "leave_one_session_out")
    assert len(planned(metadata).folds) == 4, "of no matter where speakers are left out"
    one = frozenset([("tiny", "session", "1")])
    with pytest.raises(UserError, match="may be one each"):
        planned(metadata, "leave_one_session_out", distinct=one)
    apart = one | {("tiny", "session", "01")}
    assert len(planned(metadata, "leave_one_session_out", distinct=apart).folds) == 4


def test_one_name_in_two_corpora_is_noted_and_may_be_one_person() -> None:
    rows = corpus("03", "04", "05", of="emodb") + corpus("03", "13", "14", "15", of="savee")
    metadata = table(rows)
    (note,) = (note for note in planned(metadata).notes if "several corpora" in note)
    assert "03 (emodb, savee)" in note and "folds.speaker_aliases={savee/03: emodb/03}" in note
    assert len(planned(metadata).folds) == 7
    folds = planned(metadata, speaker_aliases={"savee/03": "emodb/03"})
    assert len(folds.folds) == 6 and not any("several corpora" in note for note in folds.notes)
    with pytest.raises(UserError, match="1 speakers stand in both"):
        planned(metadata, "leave_one_corpus_out", speaker_aliases={"savee/03": "emodb/03"})
    assert not any("several corpora" in note for note in planned(metadata, speaker_aliases={"savee/03": None}).notes)


def test_emotions_that_may_be_one_are_no_two_classes() -> None:
    rows = corpus("a", "b", "c")
    metadata = table([row | {"emotion": "Happy"} if i == 0 else row for i, row in enumerate(rows)])
    with pytest.raises(UserError, match=r"emotions that may be one: 'Happy' = 'happy'.*--same-emotion Happy=happy"):
        label_set_as_annotated(metadata)
    label_set = labels.LabelSet("two", ("happy", "sad"), {"Happy": "happy"})
    assert len(plan_folds(metadata, label_set, "leave_one_speaker_out", None).folds) == 3, (
        "a label set says what each stands for"
    )


def test_an_emotion_that_nobody_knows_is_no_class() -> None:
    rows = corpus("a", "b", "c")
    label_set = label_set_as_annotated(table([row | {"emotion": "nan"} if i == 0 else row for i, row in enumerate(rows)]))
    assert label_set.classes == ("happy", "sad") and label_set.mapping == {"nan": None}


def test_overlapping_pieces_never_stand_on_two_sides_and_are_told_under_two_speakers() -> None:
    rows = corpus("a", "b", "c", "d")
    metadata = table(rows)
    overlap = np.full(len(rows), -1, np.int32)
    overlap[[0, 4]] = 0  # of a and b
    metadata = replace(metadata, overlap=overlap)
    with pytest.raises(UserError, match=r"(?s)identical stretches of a recording on two sides:.*tiny/0-0 = tiny/1-0"):
        planned(metadata)
    split = [{"split": name} for name in ("train", "train", "dev", "test")]
    rows = [row | split[i // 4] for i, row in enumerate(rows)]
    same_side = table(rows)
    same_side = Metadata(
        **{name: getattr(same_side, name) for name in same_side.__slots__ if name != "overlap"}, overlap=overlap
    )
    assert any("are of different speakers" in note for note in planned(same_side, "given_split").notes)


def test_classes_of_few_speakers_or_one_gender_are_told() -> None:
    rows = []
    for number in range(8):
        gender = ("female", "male")[number % 2]
        emotions = ["happy", "sad", "happy", *(["angry"] if gender == "male" else []), *(["bored"] if number in (0, 3) else [])]
        rows += [{"speaker": f"s{number}", "gender": gender, "emotion": emotion} for emotion in emotions]
    notes = planned(table(rows)).notes
    assert any("Classes spoken by few of the 8 known speakers: bored by 2." in note for note in notes)
    assert any("speakers of one gender alone" in note and "angry by male ones" in note for note in notes)
    assert not any("happy by" in note for note in notes)


def test_declared_pairs_may_be_given_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "people.yaml"
    file.write_text("{ANNA: anna, 'anna ': anna}\n")
    declared = NameOverrides.parse({"speaker": [str(file), "1=01"]}, {"session": ["a=A"]})
    assert declared.same == {"speaker": {"ANNA": "anna", "anna ": "anna", "1": "01"}}
    assert declared.distinct == {("session", "a"), ("session", "A")}
    file.write_text("{010: anna, no: yes, 1.0: 1}\n")
    assert NameOverrides.parse({"speaker": [str(file)]}, {}).same["speaker"] == {"010": "anna", "no": "yes", "1.0": "1"}, (
        "no numbers"
    )
    with pytest.raises(UserError, match="'b' is read as 'c', so nothing can be read as it"):
        NameOverrides.parse({"speaker": ["a=b", "b=c"]}, {})
    for wrong in ("=x", "x=", "nothing", str(tmp_path)):
        with pytest.raises(UserError, match="write NAME=OTHER"):
            NameOverrides.parse({"speaker": [wrong]}, {})
    assert all(is_unknown(word) for word in UNKNOWN)
