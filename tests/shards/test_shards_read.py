"""What comes out of the shards is what went in, by every way in; damage is never read as sound."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from small import without_index_file

from ser_hpc.core.errors import UserError
from ser_hpc.shards import audio
from ser_hpc.shards.index import DATASET, LAYOUT_VERSION, ShardIndex
from ser_hpc.shards.read import CorruptClipError, ShardReader
from ser_hpc.shards.verify import main as verify_main
from ser_hpc.shards.verify import verify
from ser_hpc.shards.write import pack


@pytest.fixture
def packed(tmp_path: Path, make_corpus: Callable) -> Path:
    pack(make_corpus(), tmp_path / "out", workers=1)
    return tmp_path / "out"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_reader_gives_the_sources_samples_and_metadata(tmp_path: Path, make_corpus: Callable) -> None:
    utterances = make_corpus(gender="female", text_id="t1", split="train")
    pack(utterances, tmp_path / "out", workers=1)
    index = ShardIndex.load(tmp_path / "out")
    by_key = {utterance.key: utterance for utterance in utterances}
    assert [index.key(i) for i in range(len(index.metadata))] == sorted(by_key)
    with ShardReader(index) as reader:
        for i in range(len(index.metadata)):
            source = by_key[index.key(i)]
            samples, _ = soundfile.read(source.audio_path, dtype="int16")
            np.testing.assert_array_equal(reader.read(i), samples)
            assert index.num_samples[i] == len(samples)
            assert index.metadata.seconds[i] == len(samples) / 16_000
            assert index.metadata.sound[i] == audio.samples_hash(samples)
            for name in ("corpus", "utterance_id", "speaker", "emotion", "session", "gender", "text_id", "split"):
                assert getattr(index.metadata, name)[i] == getattr(source, name)
    assert [array.dtype for array in (index.shard, index.offset, index.size, index.num_samples, index.crc32)] == [
        np.int32, np.int64, np.int64, np.int64, np.uint32,
    ]  # fmt: skip


def test_one_shard_holds_one_session(packed: Path) -> None:
    index = ShardIndex.load(packed)
    for number, shard in enumerate(index.shards):
        assert set(index.metadata.session[index.shard == number]) == {shard.group}


def test_webdataset_and_tar_see_the_same_clips(packed: Path) -> None:
    index = ShardIndex.load(packed)
    paths = [str(packed / shard.path) for shard in index.shards]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [index.key(i) for i in range(len(index.metadata))]
    with ShardReader(index) as reader:
        for i, sample in enumerate(samples):
            np.testing.assert_array_equal(audio.decode_flac(sample["flac"]), reader.read(i))
            described = json.loads(sample["json"])
            assert (described["emotion"], described["valence"], described["num_samples"]) == (
                index.metadata.emotion[i], 1.5, index.num_samples[i],
            )  # fmt: skip
            assert str(packed.parent) not in sample["json"].decode()
    with tarfile.open(paths[0]) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"{index.key(i)}.{end}" for i in range(4) for end in ("flac", "json")]
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}


def test_reader_serves_threads_and_travels_to_processes(packed: Path) -> None:
    index = ShardIndex.load(packed)
    positions = np.random.default_rng(0).integers(0, len(index.metadata), 200).tolist()
    with ShardReader(index) as reader, ThreadPoolExecutor(8) as threads:
        for position, samples in zip(positions, threads.map(reader.read, positions), strict=True):
            assert audio.samples_hash(samples) == index.metadata.sound[position]
        with pickle.loads(pickle.dumps(reader)) as other:
            np.testing.assert_array_equal(other.read(0), reader.read(0))


def test_reader_holds_few_files_open(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ser_hpc.shards.read._MAX_OPEN", 2)
    index = ShardIndex.load(packed)

    def open_tars() -> int:
        links = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
        return sum(str(link.readlink()).startswith(str(packed)) and link.readlink().suffix == ".tar" for link in links)

    reader = ShardReader(index)
    for position in [*range(len(index.metadata))] * 2:
        reader.read(position)
    assert open_tars() == 2
    reader.close()
    assert open_tars() == 0


def test_flipped_byte_in_a_payload_is_refused_by_name_and_found(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = ShardIndex.load(packed)
    assert verify(packed) == []
    flip(packed / index.shards[1].path, int(index.offset[5] + index.size[5] // 2))
    with ShardReader(ShardIndex.load(packed)) as reader:
        with pytest.raises(
            CorruptClipError, match=rf"{index.key(5)} in shard .*{index.shards[1].path}.*crc32.*pack the corpus"
        ):
            reader.read(5)
        assert len(reader.read(4)) == index.num_samples[4]  # its neighbour is as it was
    problems = verify(packed)
    assert any("sha256" in problem for problem in problems)
    assert any(index.key(5) in problem and "crc32" in problem for problem in problems)
    assert not any(index.key(4) in problem for problem in problems)
    assert verify_main([str(packed)]) == 1
    assert index.key(5) in capsys.readouterr().out


@pytest.mark.parametrize("where", ["payload", "metadata", "header", "padding", "index", "dataset"])
def test_verify_finds_a_flipped_bit_anywhere(packed: Path, where: str) -> None:
    index = ShardIndex.load(packed)
    tar = packed / index.shards[0].path
    end = int(index.offset[0] + index.size[0])
    places = {"payload": (tar, end - 3), "header": (tar, 10), "padding": (tar, tar.stat().st_size - 1)}
    places["metadata"] = (tar, tar.read_bytes().index(b'"emotion"') + 13)
    places["index"] = (tar.with_suffix(".parquet"), 200)
    places["dataset"] = (packed / DATASET, (packed / DATASET).read_bytes().index(b'"seconds"') + 12)
    flip(*places[where])
    assert verify(packed) != []


def test_missing_shard_and_missing_index_are_refused_by_name(packed: Path) -> None:
    without_index_file(packed)
    index = ShardIndex.load(packed)
    tar = packed / index.shards[2].path
    for path in (tar, tar.with_suffix(".parquet")):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(UserError, match=f"{path}.*missing"):
            ShardIndex.load(packed)
        assert any(str(path) in problem for problem in verify(packed))
        path.write_bytes(content[:-512])
        with pytest.raises(UserError, match=f"{path}"):
            ShardIndex.load(packed)
        path.write_bytes(content)
    assert ShardIndex.load(packed).fingerprint == index.fingerprint


def test_what_is_no_finished_dataset_is_told_apart(packed: Path, tmp_path: Path) -> None:
    dataset = packed / DATASET
    content = dataset.read_text()
    dataset.write_text(content.replace(f'"version": {LAYOUT_VERSION}', '"version": 99'))
    with pytest.raises(UserError, match="layout version 99"):
        ShardIndex.load(packed)
    dataset.write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        ShardIndex.load(packed)
    dataset.unlink()
    with pytest.raises(UserError, match="did not finish"):
        ShardIndex.load(packed)
    with pytest.raises(UserError, match=r"python -m ser_hpc\.pack"):
        ShardIndex.load(tmp_path / "nothing")


def test_shard_that_vanishes_while_reading_is_a_user_error(packed: Path) -> None:
    index = ShardIndex.load(packed)
    (packed / index.shards[0].path).unlink()
    with ShardReader(index) as reader, pytest.raises(UserError, match="cannot be read"):
        reader.read(0)


def test_reading_an_index_leaves_no_thread_behind(packed: Path) -> None:
    """A thread of arrow's pool alive at the interpreter's end aborts it: a command's exit code would be lost, now and then."""
    program = """
import os, sys, time
from pathlib import Path
from ser_hpc.shards.index import ShardIndex
ShardIndex.load(Path(sys.argv[1]))
def others():
    names = [Path(f"/proc/self/task/{task}/comm") for task in os.listdir("/proc/self/task")]
    return [path.read_text().strip() for path in names if path.exists()][1:]
deadline = time.monotonic() + 10  # a thread that was joined is still there for a moment
while set(others()) - {"jemalloc_bg_thd"} and time.monotonic() < deadline:  # the allocator's does no harm
    time.sleep(0.05)
print(sorted(set(others()) - {"jemalloc_bg_thd"}))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # numpy's library has threads of its own
    result = subprocess.run(
        [sys.executable, "-c", program, packed], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
