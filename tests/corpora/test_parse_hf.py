"""Hugging Face datasets on disk: every layout gives the same clips, embedded sound becomes files, nothing leads outside, and
the library is kept to what lies in the folder."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Dataset
from trees import clip

from ser_hpc.core.errors import UserError
from ser_hpc.corpora.formats import embedded_audio, hf
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER, Utterance

FEATURES = {
    "audio": {"sampling_rate": 16000, "_type": "Audio"},
    "label": {"names": ["anger", "Happy"], "_type": "ClassLabel"},
    "speaker_id": {"dtype": "int64", "_type": "Value"},
    "sex": {"names": ["male", "female"], "_type": "ClassLabel"},
    "activation": {"dtype": "float32", "_type": "Value"},
    "Transcript (raw)": {"dtype": "string", "_type": "Value"},
}
SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(folder: Path, *names: str) -> list[dict[str, Any]]:
    """One row a name: its recording embedded, as `datasets` does when it saves."""
    made = [clip(folder / f"{name}.flac", rate=22050) for name in names]
    return [
        {"audio": {"bytes": path.read_bytes(), "path": f"C:\\my clips\\{path.name}"}, "label": i % 2, "speaker_id": i}
        | {"sex": i % 2, "activation": 3.5, "Transcript (raw)": f"text {i}"}
        for i, path in enumerate(made)
    ]


def table(found: list[dict[str, Any]], features: dict[str, Any] = FEATURES) -> pa.Table:
    made = pa.Table.from_pylist(found)
    if pa.types.is_struct(made.schema.field("audio").type):
        made = made.set_column(0, "audio", pa.array([row["audio"] for row in found], SOUND))
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def save_to_disk(folder: Path, made: pa.Table) -> None:
    """With leftovers that the dataset's state does not list."""
    Dataset(made).save_to_disk(folder)
    for name in ("cache-0123456789abcdef.arrow", "data-00000-of-00002.arrow"):
        (folder / name).write_bytes((folder / "data-00000-of-00001.arrow").read_bytes())


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A DatasetDict of three clips for training and one for validation, in the folder `My Set`."""
    root = tmp_path / "My Set"
    save_to_disk(root / "train", table(rows(tmp_path / "a", "x1", "x2", "x3")))
    save_to_disk(root / "validation", table(rows(tmp_path / "b", "z5")))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return root


def told(clips: tuple[Utterance, ...]) -> list[tuple[Any, ...]]:
    return [(u.utterance_id.split("-", 1)[1], u.speaker, u.emotion, u.gender, u.split, u.arousal, u.extra) for u in clips]


def test_class_names_splits_and_all_other_columns_are_read(dataset: Path) -> None:
    result = hf.parse(dataset)
    first, second, _, last = result.utterances
    assert (first.corpus, first.utterance_id, first.speaker, first.emotion) == ("my_set", "train-x1", "0", "anger")
    assert (second.emotion, second.gender, second.arousal, second.split) == ("happy", "female", 3.5, "train")
    assert (last.utterance_id, last.split, last.extra) == ("validation-z5", "dev", {"transcript_raw": "text 0"})
    assert result.skipped == () and "emotion from label" in result.warnings[0] and "gender from sex" in result.warnings[0]


def test_embedded_sound_becomes_the_same_files_and_is_written_once(dataset: Path) -> None:
    paths = [u.audio_path for u in hf.parse(dataset).utterances]
    assert all(path.suffix == ".flac" and soundfile.info(path).samplerate == 22050 for path in paths)
    assert paths[0].read_bytes() == (dataset.parent / "a" / "x1.flac").read_bytes()
    paths[1].write_bytes(b"torn")
    times = [path.stat().st_mtime_ns for path in paths]
    again = hf.parse(dataset)
    assert [u.audio_path for u in again.utterances] == paths
    assert [path.stat().st_mtime_ns == time for path, time in zip(paths, times, strict=True)] == [True, False, True, True]
    assert paths[1].read_bytes() == (dataset.parent / "a" / "x2.flac").read_bytes()


def test_parquet_files_of_a_hub_download_give_the_same_clips(dataset: Path) -> None:
    """Names or folders begin with the split; what a hidden folder holds is no part of the dataset."""
    hub = dataset.parent / "hub"
    for name, split in (("data/train-00000-of-00001.parquet", "train"), ("validation/0000.parquet", "validation")):
        (hub / name).parent.mkdir(parents=True)
        with pa.ipc.open_stream(dataset / split / "data-00000-of-00001.arrow") as stream:
            pq.write_table(stream.read_all(), hub / name)
    (hub / ".cache").mkdir()
    (hub / ".cache/train.parquet").write_bytes(b"")
    assert told(hf.parse(hub).utterances) == told(hf.parse(dataset).utterances)


def test_one_split_is_no_split(dataset: Path) -> None:
    """The hub calls undivided data train: that is no official training part."""
    (dataset / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    clips = hf.parse(dataset).utterances
    assert [(u.utterance_id, u.split) for u in clips] == [("train-x1", ""), ("train-x2", ""), ("train-x3", "")]
    assert [u.utterance_id for u in hf.parse(dataset / "train").utterances] == ["x1", "x2", "x3"]


def test_names_that_are_missing_or_not_unique_get_the_number_of_their_row(tmp_path: Path) -> None:
    found = rows(tmp_path / "a", "x1", "x2", "x3")
    found[1]["audio"]["path"] = "x1.flac"
    found[2]["audio"]["path"] = None
    save_to_disk(tmp_path / "set", table(found))
    assert [u.utterance_id for u in hf.parse(tmp_path / "set").utterances] == ["x1-0", "x1-1", "2"]


def test_rows_that_cannot_be_used_are_skipped_and_an_unnamed_speaker_is_unknown(tmp_path: Path) -> None:
    clip(tmp_path / "set/wav/a.wav")
    values = [("wav/a.wav", "sad", None), ("wav/none.wav", "sad", "s"), (None, "sad", "s"), ("wav/a.wav", None, "s")]
    made = pa.Table.from_pylist([{"file": f, "emotion": e, "speaker": s} for f, e, s in values])
    pq.write_table(made, tmp_path / "set/all.parquet")
    result = hf.parse(tmp_path / "set")
    assert [(u.utterance_id, u.speaker, u.audio_path) for u in result.utterances] == [
        ("a", UNKNOWN_SPEAKER, tmp_path / "set/wav/a.wav")
    ]
    assert [reason for _, reason in result.skipped] == [
        "row 1: no recording wav/none.wav",
        "row 2: no sound",
        "row 3: no emotion",
    ]
    assert not (tmp_path / "set" / embedded_audio.FOLDER).exists(), "nothing is embedded"


def test_an_unlabelled_row_of_a_class_label_is_no_emotion(tmp_path: Path) -> None:
    found = rows(tmp_path / "a", "x1", "x2")
    found[0]["label"] = -1
    save_to_disk(tmp_path / "set", table(found))
    result = hf.parse(tmp_path / "set")
    assert len(result.utterances) == 1 and result.skipped[0][1] == "row 0: no emotion"


def test_missing_columns_are_refused_with_what_is_there_and_what_is_looked_for(tmp_path: Path) -> None:
    found = [{"audio": row["audio"], "mood": "x"} for row in rows(tmp_path / "a", "x1")]
    save_to_disk(tmp_path / "set", table(found, {}))
    with pytest.raises(UserError, match=r"no column says emotion or speaker. Its columns are mood; .*speaker_id.*client_id"):
        hf.parse(tmp_path / "set")
    assert not (tmp_path / "set" / embedded_audio.FOLDER).exists(), "nothing is written before the columns are known"
    (tmp_path / "bare").mkdir()
    pq.write_table(pa.table({"emotion": ["sad"]}), tmp_path / "bare/x.parquet")
    with pytest.raises(UserError, match="no column holds recordings"):
        hf.parse(tmp_path / "bare")


def test_a_root_that_cannot_be_written_is_refused_with_the_way_out(dataset: Path) -> None:
    (dataset / embedded_audio.FOLDER).write_text("in the way")
    with pytest.raises(UserError, match=r"must be laid out as files in .*copy the dataset to a place that is"):
        hf.parse(dataset)


def test_a_file_list_cannot_lead_outside(dataset: Path) -> None:
    save_to_disk(dataset.parent / "other", table(rows(dataset.parent / "c", "x1")))
    (dataset / "dataset_dict.json").write_text(json.dumps({"splits": ["../other"]}))
    with pytest.raises(UserError, match="is not a file inside the dataset"):
        hf.parse(dataset)
    state = dataset / "train/state.json"
    files = {"_data_files": [{"filename": "../validation/data-00000-of-00001.arrow"}]}
    state.write_text(json.dumps(json.loads(state.read_text()) | files))
    with pytest.raises(UserError, match="is not a file inside the dataset"):
        hf.parse(dataset / "train")


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_damaged_files_are_refused_by_name(dataset: Path, keep: float) -> None:
    arrow, parquet = dataset / "train" / "data-00000-of-00001.arrow", dataset.parent / "hub/train.parquet"
    parquet.parent.mkdir()
    with pa.ipc.open_stream(arrow) as stream:
        pq.write_table(stream.read_all(), parquet)
    for path in (arrow, parquet):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(UserError, match="My Set cannot be read as a dataset"):
        hf.parse(dataset)
    with pytest.raises(UserError, match=r"train\.parquet cannot be read as a dataset"):
        hf.parse(parquet.parent)


def test_no_network_is_asked_and_recordings_beside_the_rows_are_all_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that nobody may write to can be read where it names recordings."""
    clip(tmp_path / "set/data/a.wav")
    made = pa.table({"file": ["a.wav"], "emotion": ["sad"], "speaker": ["s"]})
    pq.write_table(made, tmp_path / "set/data/train.parquet")
    Dataset(made).save_to_disk(tmp_path / "saved")
    clip(tmp_path / "saved/a.wav")

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = sorted(tmp_path.rglob("*"))
    for root in ("set", "saved"):
        assert [clip.audio_path.name for clip in hf.parse(tmp_path / root).utterances] == ["a.wav"]
    assert sorted(tmp_path.rglob("*")) == before


def test_without_the_library_its_extra_is_named(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'ser_hpc\[hf\]'"):
        hf.parse(dataset)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    clip(tmp_path / "song.wav")
    with pytest.raises(UserError, match="is no dataset of Hugging Face"):
        hf.parse(tmp_path)
