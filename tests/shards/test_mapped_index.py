"""The index as one mapped file: what it gives is what the shards' own indices give, and no other file is taken for it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from small import without_index_file

from ser_hpc.core.errors import UserError
from ser_hpc.corpora.labels import label_set_as_annotated
from ser_hpc.corpora.utterance import COLUMNS, Utterance
from ser_hpc.protocols.folds import plan_folds
from ser_hpc.shards.index import DATASET, ShardIndex, read_dataset
from ser_hpc.shards.mapped_index import INDEX, LAYOUT, NUMBERS, IndexFile, parse_index_file, write_index
from ser_hpc.shards.storage import Url, parse_location
from ser_hpc.shards.verify import verify
from ser_hpc.shards.write import pack


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three packed corpora: one of whole clips, and two that are cut from the same recordings, with pieces that overlap."""
    root = tmp_path_factory.mktemp("mapped")
    rng = np.random.default_rng(0)
    for number in range(6):
        soundfile.write(root / f"r{number}.wav", rng.integers(-9000, 9000, 16_000, dtype=np.int16), 16_000)
    clips = [
        Utterance(corpus, f"{name}{n}", root / f"r{n}.wav", f"sp{n}", ("joy", "zorn")[n % 2], **{"session": f"{n % 2}"} | more)
        for corpus, name, more in [
            ("whole", "ü".encode().hex(), {"gender": "female", "extra": {"age": "30"}}),
            ("cuts", "a", {"start_s": 0.0, "end_s": 0.5, "language": "de"}),
            ("cuts", "b", {"start_s": 0.4, "end_s": 0.9, "text_id": "t"}),
            ("more", "c", {"start_s": 0.1, "end_s": 0.3, "session": "cut"}),
            ("more", "d", {"session": "not cut"}),
        ]
        for n in range(6)
    ]
    for corpus in ("whole", "cuts", "more"):
        pack([clip for clip in clips if clip.corpus == corpus], root / corpus, workers=1)
    return [root / "whole", root / "cuts", root / "more"]


@pytest.fixture
def packed(datasets: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(datasets[1], tmp_path / "out"))


def contents(index: ShardIndex) -> dict[str, Any]:
    metadata = index.metadata
    columns = {name: getattr(metadata, name).tolist() for name in (*COLUMNS, "extra", "utterance_id", "sound")}
    arrays = {name: getattr(index, name) for name in ("shard", *NUMBERS)} | {"seconds": metadata.seconds}
    overlap = None if metadata.overlap is None else metadata.overlap.tolist()
    typed = {name: (array.dtype, array.tolist()) for name, array in arrays.items()}
    return columns | typed | {"overlap": overlap, "fingerprint": index.fingerprint, "distinct": index.distinct}


@pytest.mark.parametrize("which", [[0], [1], [0, 1], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("older", [0, 1])
def test_every_column_and_plan_is_what_the_shards_indices_give(
    datasets: list[Path], tmp_path: Path, which: list[int], older: int
) -> None:
    """With one dataset or several, with pieces of one recording in two, and beside a dataset that has no such file."""
    roots = [datasets[number] for number in which]
    copies = [Path(shutil.copytree(root, tmp_path / root.name)) for root in roots]
    for copy in copies:
        without_index_file(copy)
    mapped, joined = ShardIndex.load(*roots[older:], *copies[:older]), ShardIndex.load(*copies)
    assert contents(mapped) == contents(joined)
    plans = [plan_folds(i.metadata, label_set_as_annotated(i.metadata), "speaker_groups", 3) for i in (mapped, joined)]
    assert plans[0].digest == plans[1].digest and plans[0].notes == plans[1].notes
    some = np.array([3, 0, 5])
    assert mapped.metadata.take(some).speaker.tolist() == joined.metadata.speaker[some].tolist()


def test_no_row_of_a_mapped_index_is_in_private_memory(datasets: list[Path]) -> None:
    index = ShardIndex.load(datasets[0])
    (here,) = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(datasets[0]) in line][-1:]
    first, last = (int(number, 16) for number in here.split("-"))
    columns = [*(getattr(index, name) for name in NUMBERS), *(getattr(index.metadata, name).codes for name in COLUMNS)]
    addresses = [column.__array_interface__["data"][0] for column in columns]
    addresses += [
        buffer.address for text in (index.metadata.sound, index.metadata.utterance_id) for buffer in text.arrow.buffers()[1:]
    ]
    assert all(first <= address < last for address in addresses)


def described(root: Path) -> IndexFile:
    return IndexFile(**read_dataset(root)["index"])


def reseal(root: Path, content: bytes, **changes: Any) -> None:
    """An enemy's file, with all checksums right."""
    (root / INDEX).write_bytes(content)
    dataset = json.loads((root / DATASET).read_text())
    dataset["index"] = asdict(IndexFile(LAYOUT, len(content), hashlib.sha256(content).hexdigest())) | changes
    (root / DATASET).write_text(json.dumps(dataset))


def stream(batch: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def with_column(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), name, column)


def first(batch: pa.RecordBatch, name: str, value: int) -> pa.RecordBatch:
    column = batch.column(name)
    return with_column(batch, name, pa.array([value, *column.to_pylist()[1:]], column.type))


def unchecked_words(codes: list[int], names: list[str | None]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(names, pa.large_string()), safe=False)


def with_overlap(batch: pa.RecordBatch, number: int) -> pa.RecordBatch:
    """The columns of pieces, where a clip is of a group of that number: two thousand million would take as many bytes."""
    nothing = {"recording": np.zeros(len(batch), np.int64)} | dict.fromkeys(("begins", "ends"), np.zeros(len(batch)))
    columns = {"overlap": np.array([number, *[-1] * (len(batch) - 1)], np.int32)} | nothing
    names = [name for name in batch.schema.names if name not in columns]
    return pa.RecordBatch.from_pydict({name: batch.column(name) for name in names} | columns)


def broken_text(rows: int) -> pa.Array:
    """Texts whose offsets go back and lead out of the buffer."""
    offsets = np.array([0, 1 << 40, *range(1, rows)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(b"x" * rows))


ENEMIES: dict[str, tuple[Callable[[pa.RecordBatch], bytes], str]] = {
    "negative offset": (lambda b: stream(first(b, "offset", -1)), "do not lie in the tars"),
    "offset that overflows": (lambda b: stream(first(b, "offset", (1 << 63) - 1)), "do not lie in the tars"),
    "size that overflows": (lambda b: stream(first(b, "size", (1 << 63) - 1)), "do not lie in the tars"),
    "clip without length": (lambda b: stream(first(b, "num_samples", 0)), "no length"),
    "fewer clips": (lambda b: stream(b.slice(1)), "clips, and"),
    "no clips": (lambda b: stream(b.slice(0, 0)), "clips, and"),
    "compressed": (lambda b: stream(b, "zstd"), "compressed"),
    "compressed dictionaries": (lambda b: stream(b, "lz4"), "compressed"),
    "column missing": (lambda b: stream(b.drop_columns(["sound"])), "columns are others"),
    "column twice": (lambda b: stream(b.append_column("sound", b.column("sound"))), "columns are others"),
    "nested": (lambda b: stream(with_column(b, "sound", pa.array([[["x"]]] * len(b)))), "column sound is another"),
    "words without codes": (lambda b: stream(with_column(b, "speaker", b.column("speaker").dictionary_decode())), "speaker"),
    "code out of range": (lambda b: stream(with_column(b, "speaker", unchecked_words([7] * len(b), ["a"]))), "damaged"),
    "negative code": (lambda b: stream(with_column(b, "speaker", unchecked_words([-1] * len(b), ["a"]))), "damaged"),
    "word twice": (lambda b: stream(with_column(b, "speaker", unchecked_words([0] * len(b), ["a", "a"]))), "twice"),
    "no word": (lambda b: stream(with_column(b, "speaker", unchecked_words([0] * len(b), [None]))), "twice"),
    "null": (lambda b: stream(with_column(b, "sound", pa.array([None] * len(b), pa.large_string()))), "lack something"),
    "text out of bounds": (lambda b: stream(with_column(b, "sound", broken_text(len(b)))), "damaged"),
    "group that is none": (lambda b: stream(with_overlap(b, 2**31 - 2)), "column overlap"),
    "group below none": (lambda b: stream(with_overlap(b, -2)), "column overlap"),
    "no text": (lambda b: stream(b).replace(b.column("sound")[0].as_py().encode(), b"\xff" * 32), "damaged"),
    "schema alone": (lambda b: b.schema.serialize().to_pybytes(), "damaged"),
    "nothing": (lambda b: b"", "damaged"),
    "zeros": (lambda b: bytes(4096), "damaged"),
    "half": (lambda b: stream(b)[:-700], "damaged"),
    "announces more": (lambda b: b"\xff\xff\xff\xff\xff\xff\xff\x7f" + stream(b)[8:], "damaged"),
    "pickle": (lambda b: b"cos\nsystem\n(S'false'\ntR.", "damaged"),
}


@pytest.mark.parametrize("name", ENEMIES)
def test_an_enemys_file_is_refused_in_words(packed: Path, name: str) -> None:
    forge, words = ENEMIES[name]
    batch = parse_index_file(pa.py_buffer((packed / INDEX).read_bytes()))
    reseal(packed, forge(batch))
    with pytest.raises(UserError, match=rf"(?s)index .*{INDEX}.*{words}"):
        ShardIndex.load(packed)
    assert any(INDEX in problem for problem in verify(packed))


def test_any_changed_bytes_under_right_checksums_are_refused_or_stay_within_the_file(packed: Path) -> None:
    """Structure and all: whatever is read of it, nothing leads out of the mapping, and nothing ends the process."""
    content = (packed / INDEX).read_bytes()
    rng = np.random.default_rng(0)
    starts = [match.start() for match in re.finditer(rb"\xff{4}[^\0].\0\0", content, re.DOTALL)]  # messages, and their lengths
    structure = np.concatenate([np.arange(at, at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")) for at in starts])
    for turn in range(2500):
        changed = bytearray(content)
        for at in rng.choice(structure if turn % 5 else len(content), rng.integers(1, 4)).tolist():
            changed[at] = rng.choice([0, 4, 8, 20, 127, 255, int(rng.integers(256))])
        try:
            batch = parse_index_file(pa.py_buffer(bytes(changed)))
        except (ValueError, OSError, pa.ArrowException):
            continue
        assert len(batch.to_pylist()) == len(batch)


@pytest.mark.parametrize(
    "entry",
    [
        7,
        [],
        None,
        {"layout": LAYOUT},
        {"layout": LAYOUT, "bytes": -1, "sha256": ""},
        {"path": "../../etc/passwd"},
        {"layout": LAYOUT, "bytes": 9, "sha256": "../x"},
    ],
)
def test_a_description_that_packing_never_wrote_is_refused(packed: Path, entry: object) -> None:
    dataset = json.loads((packed / DATASET).read_text()) | {"index": entry}
    (packed / DATASET).write_text(json.dumps(dataset))
    with pytest.raises(UserError, match=r"dataset\.json is damaged"):
        ShardIndex.load(packed)


def test_damage_another_datasets_file_and_what_is_no_file_are_refused(packed: Path, datasets: list[Path]) -> None:
    path, content = packed / INDEX, (packed / INDEX).read_bytes()
    for damaged in (content[:-1], content + b"x", content[:900] + b"?" + content[901:], (datasets[0] / INDEX).read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"index {path} is damaged.*copy it again"):
            ShardIndex.load(packed)
    path.unlink()
    with pytest.raises(UserError, match=f"index {path} is missing"):
        ShardIndex.load(packed)
    os.mkfifo(path)
    with pytest.raises(UserError, match="is damaged"):
        ShardIndex.load(packed)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is damaged"):
        ShardIndex.load(packed)
    path.rmdir()
    (packed.parent / "elsewhere").write_bytes(content)
    path.symlink_to(packed.parent / "elsewhere")  # as tars may be
    assert len(ShardIndex.load(packed).metadata) == 12


def test_a_file_that_is_not_of_its_shards_is_found_by_verifying(packed: Path, datasets: list[Path]) -> None:
    assert [verify(root) for root in (packed, *datasets)] == [[]] * 4
    batch = parse_index_file(pa.py_buffer((packed / INDEX).read_bytes()))
    reseal(packed, stream(with_column(batch, "speaker", unchecked_words([0] * len(batch), ["anna"]))))
    assert verify(packed) == [f"index {packed / INDEX} is not that of its shards"]


def test_a_layout_of_later_versions_is_passed_over(packed: Path) -> None:
    before = contents(ShardIndex.load(packed))
    reseal(packed, b"whatever", layout=LAYOUT + 1)
    assert contents(ShardIndex.load(packed)) == before


def test_packing_again_gives_an_older_dataset_its_file_and_leaves_a_right_one_alone(
    tmp_path: Path, make_corpus: Callable
) -> None:
    clips, out = make_corpus(), tmp_path / "out"
    pack(clips, out, workers=1)
    content = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    without_index_file(out)
    pack(clips, out, workers=1)
    assert {path: path.read_bytes() for path in content} == content
    before = (out / INDEX).stat()
    mapped = ShardIndex.load(out)
    pack(clips, out, workers=1)
    assert (out / INDEX).stat() == before  # jobs on other nodes may have mapped it
    pack(make_corpus(sessions=4), out, workers=1)
    assert len(ShardIndex.load(out).metadata) == 16 and verify(out) == []
    assert len(mapped.metadata) == len(set(mapped.metadata.utterance_id.tolist())) == 12  # as it was mapped


def test_many_ranks_at_once_copy_an_index_once(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store, copies = fsspec.filesystem("memory"), []
    for path in packed.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/ranks/{path.relative_to(packed)}", path.read_bytes())
    real = Url.copy_to
    monkeypatch.setattr(Url, "copy_to", lambda url, target: (copies.append(url), real(url, target)))
    with ThreadPoolExecutor(8) as ranks:
        loaded = [*ranks.map(lambda _: contents(ShardIndex.load(parse_location("memory://ranks"))), range(8))]
    assert len(copies) == 1 and loaded == [contents(ShardIndex.load(packed))] * 8


def test_an_index_behind_a_url_is_copied_once_and_checked(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "scratch"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    store = fsspec.filesystem("memory")
    for path in packed.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/mapped/{path.relative_to(packed)}", path.read_bytes())
    url = parse_location("memory://mapped")
    local, remote = contents(ShardIndex.load(packed)), contents(ShardIndex.load(url))
    assert remote == local
    (copy,) = (path for path in temporary.glob("*/*") if path.suffix != ".lock")
    store.pipe_file(f"/mapped/{INDEX}", b"gone")
    assert contents(ShardIndex.load(url)) == local  # from the copy
    copy.write_bytes(b"?" * copy.stat().st_size)
    with pytest.raises(UserError, match=r"memory://mapped/index\.arrow has 4 bytes instead of"):
        ShardIndex.load(url)
    content = (packed / INDEX).read_bytes()
    store.pipe_file(f"/mapped/{INDEX}", content)
    left = copy.with_name(f".{copy.name}.host.1.tmp")
    left.write_bytes(b"of a copier that was killed")
    assert contents(ShardIndex.load(url)) == local  # the damaged copy is replaced
    assert not left.exists()
    store.pipe_file(f"/mapped/{INDEX}", content[:-1] + bytes([content[-1] ^ 1]))
    copy.unlink()
    with pytest.raises(UserError, match=r"index memory://mapped/index\.arrow is damaged"):
        ShardIndex.load(url)
    copy.parent.chmod(0o777)
    with pytest.raises(UserError, match="TMPDIR"):
        ShardIndex.load(url)


def test_the_written_file_is_read_by_arrow_alone(packed: Path) -> None:
    """As a stranger's program would, and as `write_index` says of it."""
    with pa.ipc.open_stream(packed / INDEX) as reader:
        table = reader.read_all()
    assert table.column("utterance_id").to_pylist() == ShardIndex.load(packed).metadata.utterance_id.tolist()
    batch = parse_index_file(pa.py_buffer((packed / INDEX).read_bytes()))
    assert write_index(packed / INDEX, batch) == described(packed)


@pytest.mark.parametrize("extra", ["no JSON", "7", "null", '["age"]', "[" * 100_000])
def test_further_fields_that_packing_never_wrote_are_refused_in_words(packed: Path, extra: str) -> None:
    batch = parse_index_file(pa.py_buffer((packed / INDEX).read_bytes()))
    reseal(packed, stream(with_column(batch, "extra", unchecked_words([0] * len(batch), [extra]))))
    with pytest.raises(UserError, match="no JSON object; pack the corpus again"):
        ShardIndex.load(packed).metadata.column("age")


def test_a_place_for_copies_that_is_none_is_not_taken_for_a_missing_index(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$TMPDIR that is gone, is no folder, or is full while the index is copied; nothing is asked again of the store."""
    store = fsspec.filesystem("memory")
    for path in packed.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/places/{path.relative_to(packed)}", path.read_bytes())
    for place in (tmp_path / "gone", packed / DATASET):
        monkeypatch.setattr("tempfile.tempdir", str(place))
        with pytest.raises(UserError, match=r"no folder for temporary files .*; set TMPDIR"):
            ShardIndex.load(parse_location("memory://places"))

    def full(path: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(store, "get_file", full)
    with pytest.raises(UserError, match=r"cannot be copied to .*No space left on device.*; set TMPDIR to a folder with"):
        ShardIndex.load(parse_location("memory://places"))
