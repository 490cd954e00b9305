"""Tables: what is written is what is read, every mistake is told at once with its line, and ids are unique in any order."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ser_hpc.core.errors import UserError
from ser_hpc.corpora.formats import table


def write(tmp_path: Path, text: str, name: str = "My Corpus.csv") -> Path:
    for wav in ("a.wav", "b.wav", "sub/a b.wav", "sub/a-b.wav"):
        (tmp_path / wav).parent.mkdir(exist_ok=True)
        (tmp_path / wav).touch()
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        table.parse(path)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_values_are_read_and_normalised(tmp_path: Path) -> None:
    text = "audio,emotion,speaker,gender,split,arousal,start_s,end_s,session,text_id\n"
    text += "a.wav, happy ,Unknown,F,TRAIN,3.5,0.5,2,s1,t\nb.wav,sad,bob,Male,,,,,,\n"
    a, b = table.parse(write(tmp_path, "\ufeff" + text)).utterances
    assert (a.corpus, a.utterance_id, a.emotion, a.speaker) == ("my_corpus", "a-500-2000", "happy", "unknown")
    assert (a.gender, a.split, a.arousal, a.start_s, a.end_s, a.session, a.text_id) == (
        "female",
        "train",
        3.5,
        0.5,
        2.0,
        "s1",
        "t",
    )
    assert (b.utterance_id, b.gender, b.split, b.arousal, b.end_s) == ("b", "male", "", None, None)


def test_jsonl_and_csv_of_the_same_rows_are_the_same_clips(tmp_path: Path) -> None:
    rows = [
        {"audio": "a.wav", "emotion": "sad", "speaker": 3, "end_s": 1.5},
        {"audio": "b.wav", "emotion": "x", "speaker": "4"},
    ]
    lines = "".join(json.dumps(row | {"gender": None}) + "\n" for row in rows)
    text = "audio,emotion,speaker,end_s\na.wav,sad,3,1.5\nb.wav,x,4,\n"
    assert table.parse(write(tmp_path, lines, "c.jsonl")) == table.parse(write(tmp_path, text, "c.csv"))


def test_every_mistake_of_a_file_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = "audio,emotion,speaker,gendr,gender,split,arousal,start_s,end_s\n"
    text += "a.wav,,bob,,x,val,high,,\nnone.wav,sad,bob,,,,inf,2,1\nb.wav,sad,bob\na.wav,sad,bob,,,,,,\na.wav,sad,eve,,,,,0,\n"
    assert mistakes(write(tmp_path, text)) == [
        "line 1: unknown column 'gendr'; did you mean gender? Or extra.gendr, a field of its own",
        "line 4: 3 values under 9 columns",
        "line 2: emotion is empty",
        "line 2: arousal is 'high', which is not a finite number",
        "line 2: gender is 'x'; use f, female, m, male, or leave it empty",
        "line 2: split is 'val'; use train, dev, test, or leave it empty",
        f"line 3: no audio file {tmp_path / 'none.wav'}",
        "line 3: arousal is 'inf', which is not a finite number",
        "line 3: a clip from 2.0 s to 1.0 s: must be 0 <= start_s < end_s",
        f"line 6: the same clip as line 5: {tmp_path / 'a.wav'}",
    ]


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl"])
def test_columns_that_nobody_asked_for_are_kept_and_told(tmp_path: Path, name: str) -> None:
    """People's tables have an index, comments, transcripts, a second name of the speaker."""
    header = ["", "audio", "emotion", "speaker", "comment", "id", "Full Text", "speaker_id", "extra.age"]
    rows = [dict(zip(header, ["0", "a.wav", "sad", "bob", "too, loud", "7", "", "B7", "30"], strict=True))]
    rows.append(dict(zip(header, ["1", "b.wav", "joy", "eve", "", "8", "Hi", "E1", ""], strict=True)))
    path = write(tmp_path, "", name)
    with path.open("w", newline="") as file:
        if name.endswith("csv"):
            writer = csv.DictWriter(file, header)
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    parsed = table.parse(path)
    assert [clip.extra for clip in parsed.utterances] == [
        {"unnamed": "0", "comment": "too, loud", "id": "7", "speaker_id": "B7", "age": "30"},
        {"unnamed": "1", "id": "8", "full_text": "Hi", "speaker_id": "E1"},
    ]
    (note,) = parsed.warnings
    assert "kept as fields" in note and "comment, id, speaker_id" in note


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        *(("gendr", "gender"), ("Gender", "gender"), ("session_id", "session"), ("start", "start_s"), ("end", "end_s")),
        *(("speakers", "speaker"), ("Emotion", "emotion"), ("languge", "language"), ("valance", "valence")),
        *((name, None) for name in ("comment", "id", "text", "transcript", "duration", "path", "emotion_raw", "level", "sr")),
    ],
)
def test_only_a_slip_of_a_known_column_is_refused(tmp_path: Path, column: str, meant: str | None) -> None:
    """And the way to keep it all the same is named, and works."""
    text = f"audio,emotion,speaker,{column}\na.wav,sad,bob,x\n"
    if meant is None:
        assert table.parse(write(tmp_path, text)).utterances[0].extra == {column: "x"}
    else:
        (told,) = mistakes(write(tmp_path, text))
        assert f"did you mean {meant}?" in told
        way_out = told.split(" Or ")[1].split(",")[0]
        kept = table.parse(write(tmp_path, text.replace(f",{column}", f",{way_out}")))
        assert kept.utterances[0].extra == {column.lower(): "x"}


def test_two_columns_of_one_field_are_refused(tmp_path: Path) -> None:
    (told,) = mistakes(write(tmp_path, "audio,emotion,speaker,My note,my_note\na.wav,sad,bob,x,y\n"))
    assert "'My note' and 'my_note' would both be the field my_note" in told


def test_a_thousand_mistakes_are_not_a_thousand_lines(tmp_path: Path) -> None:
    told = mistakes(write(tmp_path, "audio,emotion,speaker\n" + "none.wav,sad,bob\n" * 1000))
    assert len(told) == 21 and told[-1] == "and 980 more"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "", "no column audio, emotion, speaker"),
        ("c.csv", "audio;emotion;speaker\na.wav;sad;bob\n", "separated by commas"),
        ("c.csv", "audio,emotion,speaker\n", "no utterance found"),
        ("c.csv", "audio,emotion,speaker,speaker\na.wav,sad,b,c\n", "'speaker' occurs 2 times"),
        ("c.csv", 'audio,emotion,speaker\n"a.wav,sad,b\n', "cannot be read"),
        ("c.jsonl", '{"audio": "a.wav"}\n', "line 1: emotion is empty"),
        ("c.jsonl", '{"audio": "a.wav"\n', "line 1: not JSON"),
        ("c.jsonl", '["a.wav"]\n', "line 1: must be an object"),
        ("c.jsonl", '{"audio": "a.wav", "emotion": "x", "speaker": "b", "Speakr": 1}\n', "did you mean speaker"),
        ("c.txt", "audio,emotion,speaker\n", "ends in .csv or .jsonl"),
        ("!.csv", "audio,emotion,speaker\na.wav,sad,b\n", "named after its table"),
    ],
)
def test_a_table_of_the_wrong_shape_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table.parse(write(tmp_path, text, name))


def test_missing_tables_folders_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"audio,emotion,speaker\n\xff\xfe,a,b\n")
    for path, message in (("none.csv", "is not a file"), (".", "is not a file"), ("bytes.csv", "cannot be read")):
        with pytest.raises(UserError, match=message):
            table.parse(tmp_path / path)


def test_ids_that_would_coincide_are_told_apart(tmp_path: Path) -> None:
    clips = table.parse(
        write(tmp_path, "audio,emotion,speaker\nsub/a b.wav,sad,bob\nsub/a-b.wav,sad,bob\na.wav,sad,bob\n")
    ).utterances
    assert clips[2].utterance_id == "a" and len({clip.utterance_id for clip in clips}) == 3
    assert all(clip.utterance_id.startswith("sub-a-b-") for clip in clips[:2])


def test_a_moved_corpus_keeps_its_ids_also_with_absolute_paths(tmp_path: Path) -> None:
    here = write(tmp_path, f"audio,emotion,speaker\n{tmp_path / 'sub/a b.wav'},sad,bob\n")
    assert table.parse(here).utterances[0].utterance_id == "sub-a-b"


PATHS = st.text(st.sampled_from("ab-_ .é/"), max_size=90).map(lambda text: str(Path(f"{text}x".lstrip("/"))))
PIECES = st.tuples(PATHS, st.sampled_from([None, 0.0, 0.0001, 1.0]), st.sampled_from([None, 2.0, 2.0001]))


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(PIECES, min_size=1, max_size=12, unique_by=lambda p: (p[0], p[1] or 0.0, p[2])), data=st.data())
def test_ids_are_valid_unique_and_the_same_in_any_order(
    pieces: list[tuple[str, float | None, float | None]], data: st.DataObject
) -> None:
    """For any paths and pieces; the ids are made without looking at a disk."""

    def ids(order: list[tuple[str, float | None, float | None]]) -> dict[object, str]:
        here = Path("/data/corpus.csv")
        clips = [
            table.Utterance(
                "corpus",
                table._plain_id(here, here.parent / path, start, end),
                here.parent / path,
                "bob",
                "sad",
                start_s=start,
                end_s=end,
            )
            for path, start, end in order
        ]
        return {table._piece(clip): clip.utterance_id for clip in table._with_unique_ids(here, clips)}

    first = ids(pieces)
    assert len(set(first.values())) == len(first)
    assert ids(data.draw(st.permutations(pieces))) == first


def test_a_table_written_by_csv_itself_with_quotes_and_line_breaks_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [
                ["audio", "emotion", "speaker", "words"],
                ["a.wav", 'very, "sad"', "bob", 'so, "he"\nsaid'],
                [],
                ["b.wav", "x", "y", ""],
            ]
        )
    read = table.parse(path).utterances
    assert [u.emotion for u in read] == ['very, "sad"', "x"]
    assert [dict(u.extra) for u in read] == [{"words": 'so, "he"\nsaid'}, {}]
