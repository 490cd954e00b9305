"""audformat: header and tables together say who speaks and how, the same from CSV and parquet, never from pickles."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trees import clip

from ser_hpc.core.errors import UserError
from ser_hpc.corpora.formats import audformat
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER

HEADER = """
name: my-set
languages: [deu]
schemes:
  emotion: {dtype: str, labels: {W: {german: Wut, emotion: Anger}, happiness: {german: Freude}}}
  arousal: {dtype: float}
  speaker:
    dtype: int
    labels: {3: {gender: male, age: 31}, 8: {gender: female}}
splits:
  train: {type: train}
  held-out: {type: test}
tables:
  files: {type: filewise, columns: {speaker: {scheme_id: speaker}, transcription: {}}}
  emotion.intended: {type: filewise, columns: {emotion: {scheme_id: emotion}}}
  emotion: {type: segmented, columns: {gold: {scheme_id: emotion}, gold.arousal: {scheme_id: arousal}}}
  first: {type: filewise, split_id: train, columns: {}}
  second: {type: filewise, split_id: held-out, columns: {}}
"""
TABLES = {
    "files": "file,speaker,transcription\nwav/a.wav,3,eins\nwav/b.wav,8,\nwav/c.wav,,\nwav/gone.wav,8,\n",
    "emotion.intended": "file,emotion\nwav/a.wav,happiness\n",
    "emotion": (
        "file,start,end,gold,gold.arousal\n"
        "wav/a.wav,0 days 00:00:00,0 days 00:00:00.750000,W,0.25\n"
        "wav/a.wav,0 days 00:00:00.750000,1 days 00:01:02,happiness,\n"
        "wav/b.wav,0 days 00:00:00,,happiness,\n"
        "wav/c.wav,0 days 00:00:00,NaT,W,\n"
        "wav/c.wav,1.5,NaT,,\n"
        "wav/gone.wav,0 days 00:00:00,,W,\n"
    ),
    "first": "file\nwav/a.wav\nwav/c.wav\n",
    "second": "file\nwav/b.wav\nwav/c.wav\n",
}


def make(root: Path, header: str = HEADER, tables: dict[str, str] = TABLES) -> Path:
    for name in "abc":
        clip(root / f"wav/{name}.wav", rate=8000)
    (root / "db.yaml").write_text(header, encoding="utf-8")
    for name, text in tables.items():
        (root / f"db.{name}.csv").write_text(text, encoding="utf-8")
    return root


def test_pieces_speakers_and_labels_come_together_from_header_and_tables(tmp_path: Path) -> None:
    anger, happy, whole, unknown = audformat.parse(make(tmp_path)).utterances
    assert (anger.corpus, anger.utterance_id, anger.start_s, anger.end_s) == ("my_set", "wav-a-0-750", 0.0, 0.75)
    assert (anger.speaker, anger.gender, anger.emotion, anger.arousal, anger.language) == ("3", "male", "anger", 0.25, "de")
    assert anger.extra == {"age": "31", "transcription": "eins", "emotion_intended": "happiness"}
    assert (happy.start_s, happy.end_s, happy.emotion, happy.arousal) == (0.75, 86462.0, "happiness", None)
    assert (whole.utterance_id, whole.start_s, whole.end_s, whole.speaker) == ("wav-b", None, None, "8")
    assert unknown.speaker == UNKNOWN_SPEAKER


def test_what_is_skipped_or_unclear_is_told(tmp_path: Path) -> None:
    result = audformat.parse(make(tmp_path))
    assert {(path.name, reason) for path, reason in result.skipped} == {("c.wav", "no emotion"), ("gone.wav", "no recording")}
    assert "emotions are those of the table emotion; those of emotion.intended are in `extra`" in result.warnings
    assert "1 files are in several splits, and so in none: wav/c.wav" in result.warnings
    assert [clip.split for clip in result.utterances] == ["train", "train", "test", ""]


def test_parquet_tables_say_the_same_as_csv(tmp_path: Path) -> None:
    expected = audformat.parse(make(tmp_path)).utterances
    nano = pa.duration("ns")
    rows = {
        "file": [f"wav/{name}.wav" for name in "aabcc"],
        "start": pa.array([0, 750_000_000, 0, 0, 1_500_000_000], nano),
        "end": pa.array([750_000_000, 86_462_000_000_000, None, None, None], nano),
        "gold": pa.array(["W", "happiness", "happiness", "W", None]).dictionary_encode(),
        "gold.arousal": [0.25, None, None, None, None],
    }
    pq.write_table(pa.table(rows), tmp_path / "db.emotion.parquet")
    (tmp_path / "db.emotion.csv").unlink()
    assert audformat.parse(tmp_path).utterances == expected


def test_a_misc_table_may_describe_the_speakers(tmp_path: Path) -> None:
    header = HEADER.replace("labels: {3: {gender: male, age: 31}, 8: {gender: female}}", "labels: people")
    header += "misc_tables:\n  people: {levels: {id: int}, columns: {sex: {}, home: {}}}\n"
    tables = TABLES | {"people": "id,sex,home\n3,f,Ulm\n8,m,Rom\n"}
    first, *_ = audformat.parse(make(tmp_path, header, tables)).utterances
    assert (first.gender, first.extra["home"]) == ("female", "Ulm")


def test_parts_of_one_table_for_several_splits_are_one(tmp_path: Path) -> None:
    header = """
name: parts
tables:
  emotion.desired: {columns: {emotion: {}}}
  votes.train.gold: {split_id: train, columns: {emotion: {}, speaker: {}}}
  votes.test.gold: {split_id: test, columns: {emotion: {}, speaker: {}}}
"""
    tables = {
        "emotion.desired": "file,emotion\nwav/c.wav,fear\n",
        "votes.train.gold": "file,emotion,speaker\nwav/a.wav,sad,x\n",
        "votes.test.gold": "file,emotion,speaker\nwav/b.wav,sad,y\nwav/a.wav,fear,x\n",
    }
    desired = audformat.parse(make(tmp_path / "one", header, tables))
    assert [u.audio_path.name for u in desired.utterances] == ["c.wav"], "the first kind of emotions only"
    header = header.replace("desired: {columns: {emotion", "desired: {columns: {mood")
    votes = audformat.parse(make(tmp_path / "two", header, tables))
    assert [(u.audio_path.name, u.emotion) for u in votes.utterances] == [("a.wav", "sad"), ("b.wav", "sad")]
    assert [(u.speaker, u.split) for u in votes.utterances] == [("x", ""), ("y", "test")]
    assert "1 pieces have two emotions, of which the first is used: wav/a.wav" in votes.warnings


def test_pickles_are_never_read(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "db.emotion.csv").rename(root / "db.emotion.pkl")
    with pytest.raises(UserError, match="pickles are never read: save it again"):
        audformat.parse(root)


def test_a_database_without_emotions_or_speakers_is_refused_with_its_columns(tmp_path: Path) -> None:
    header = "name: x\ntables:\n  files: {columns: {mood: {}, speaker: {}}}\n"
    with pytest.raises(UserError, match=r"no column says emotion\. Its columns are files\.mood, files\.speaker"):
        audformat.parse(make(tmp_path, header, {"files": "file,mood,speaker\nwav/a.wav,x,y\n"}))


@pytest.mark.parametrize("header", ["[]", "name: x", "tables: {a: {}}", "a: b: c"])
def test_what_is_no_header_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(UserError, match=r"db\.yaml"):
        audformat.parse(make(tmp_path, header))


def test_a_header_runs_no_code(tmp_path: Path) -> None:
    header = HEADER.replace("name: my-set", f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    with pytest.raises(UserError, match=r"db\.yaml"):
        audformat.parse(make(tmp_path / "root", header))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("old", "new", "what"), [("1.5,NaT", "soon,NaT", "'soon' is no"), ("wav/c.wav,1.5", ",1.5", "a row")])
def test_a_damaged_table_is_refused_by_name(tmp_path: Path, old: str, new: str, what: str) -> None:
    with pytest.raises(UserError, match=f"table emotion: {what}"):
        audformat.parse(make(tmp_path, HEADER, TABLES | {"emotion": TABLES["emotion"].replace(old, new)}))


def test_a_number_that_is_none_is_kept_as_text(tmp_path: Path) -> None:
    tables = TABLES | {"emotion": TABLES["emotion"].replace("0.25", "high")}
    first, *_ = audformat.parse(make(tmp_path, HEADER, tables)).utterances
    assert (first.arousal, first.extra["arousal"]) == (None, "high")
