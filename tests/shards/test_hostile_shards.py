"""Shards that are damaged, or made by an enemy: all of it is named, nothing of it is run, followed, unpacked or believed."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from ser_hpc.core.errors import UserError
from ser_hpc.shards import audio
from ser_hpc.shards.index import DATASET, Shard, ShardIndex, dataset_description, parse_index, read_dataset
from ser_hpc.shards.mapped_index import INDEX
from ser_hpc.shards.read import ShardReader
from ser_hpc.shards.verify import verify
from ser_hpc.shards.write import pack

FLIPS = 300


@pytest.fixture
def packed(tmp_path: Path, make_corpus: Callable) -> Path:
    pack(make_corpus(sessions=2, clips=3, extra={"age": "30"}), tmp_path / "out", workers=1)
    return tmp_path / "out"


def read_all(root: Path) -> dict[str, bytes]:
    """The samples of every clip by its key."""
    index = ShardIndex.load(root)
    with ShardReader(index) as reader:
        return {index.key(i): reader.read(i).tobytes() for i in range(len(index.metadata))}


def test_every_flipped_byte_is_found_and_never_heard(packed: Path) -> None:
    """In headers, payloads, JSON and padding of tars, in indices and in dataset.json: verifying names it, and reading gives the
    very samples that were packed, or a UserError."""
    whole = read_all(packed)
    files = [packed / DATASET, packed / INDEX, *sorted(packed.glob("*/*.tar")), *sorted(packed.glob("*/*.parquet"))]
    rng = np.random.default_rng(0)
    for flip in range(FLIPS):
        path = files[flip % len(files)]
        content = path.read_bytes()
        at = int(rng.integers(len(content)))
        changed = bytearray(content)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        what = f"{path.name} at {at}: {content[at]} -> {changed[at]}"
        # Between its words JSON may have any white space: that is no damage.
        harmless = path.name == DATASET and bytes([content[at], changed[at]]).isspace()
        assert verify(packed) or harmless, what
        with suppress(UserError):
            assert read_all(packed).items() <= whole.items(), what
        path.write_bytes(content)
    assert verify(packed) == [] and read_all(packed) == whole


def member(name: str, content: bytes = b"", **fields: object) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for field, value in fields.items():
            setattr(info, field, value)
        tar.addfile(info, io.BytesIO(content))

    return add


def announced(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> Callable[[tarfile.TarFile], None]:
    """A header alone, of a member that is said to have `size` bytes."""

    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]

    return add


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("__import__('pathlib').Path('executed').touch()",))


def forge(root: Path, add: Callable[[tarfile.TarFile], None]) -> None:
    """Another member at the first shard's beginning, the rest behind it, and every checksum as if it had been packed so."""
    dataset = read_dataset(root)
    first, *others = (Shard(**shard) for shard in dataset["shards"])
    tar = root / first.path
    before, front = tar.read_bytes(), io.BytesIO()
    with tarfile.open(fileobj=front, mode="w", format=tarfile.USTAR_FORMAT) as made:
        add(made)
        length = front.tell()
    content = front.getvalue()[:length] + before
    tar.write_bytes(content)
    index = tar.with_suffix(".parquet")
    table = parse_index(index.read_bytes())
    moved = pa.array([at + length for at in table.column("offset").to_pylist()], pa.int64())
    reseal(root, table.set_column(table.schema.get_field_index("offset"), "offset", moved), first, others)


def reseal(root: Path, table: pa.Table, shard: Shard, others: list[Shard]) -> None:
    """Write a shard's index and dataset.json with true checksums."""
    tar = root / shard.path
    pq.write_table(table, tar.with_suffix(".parquet"))
    sha, index_sha = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (tar, tar.with_suffix(".parquet")))
    forged = replace(shard, bytes=tar.stat().st_size, sha256=sha, index_sha256=index_sha)
    (root / DATASET).write_text(json.dumps(dataset_description([forged, *others])))


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (member("/etc/cron.d/x.json", b"{}"), "'/etc/cron.d/x.json' is an absolute path"),
        (member("../../x.flac", b"x"), "'../../x.flac' is a path out of the folder"),
        (member("a.flac", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "'a.flac' is a symbolic link"),
        (member("a.flac", type=tarfile.LNKTYPE, linkname="mini-s1c0.flac"), "'a.flac' is a hard link"),
        (member("a.flac", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "'a.flac' is a device node"),
        (member("a.flac", type=tarfile.BLKTYPE), "'a.flac' is a device node"),
        (member("a.json", type=tarfile.FIFOTYPE), "'a.json' is a named pipe"),
        (member("folder", type=tarfile.DIRTYPE), "'folder' is a folder"),
        (member("a.pyd", pickle.dumps(Payload())), "'a.pyd' is neither <key>.flac nor <key>.json"),
        (member("a.pickle", pickle.dumps(Payload())), "'a.pickle' is neither"),
        (member("a.json", b"[" * (1 << 20) + b"]"), "'a.json' is of 1048577 bytes, which no clip of ours is"),
        (announced("x", 100_000_000, tarfile.XHDTYPE), "announces 100000000 bytes, more than there are; it is a pax header"),
        (announced("x", 100_000_000, tarfile.GNUTYPE_LONGNAME), "more than there are; it is a GNU long name"),
        (announced("a.flac", 1 << 33), "announces 8589934592 bytes, more than there are"),
        (announced("a.flac", -512), "announces -512 bytes"),
    ],
)
def test_members_that_packing_never_wrote_are_named(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add: Callable, words: str
) -> None:
    """With every checksum as it should be: whoever made the shard could compute them too. Reading passes such members over."""
    monkeypatch.chdir(tmp_path)
    whole, there = read_all(packed), sorted(tmp_path.rglob("*"))
    forge(packed, add)
    problems = verify(packed)
    assert any(words in problem for problem in problems), problems
    assert not any("sha256" in problem for problem in problems)
    assert read_all(packed) == whole
    assert sorted(tmp_path.rglob("*")) == there


def with_json(content: bytes) -> Callable[[Path], None]:
    """The JSON of the first clip replaced, and all checksums right."""

    def change(root: Path) -> None:
        shards = [Shard(**shard) for shard in read_dataset(root)["shards"]]
        tar = root / shards[0].path
        with tarfile.open(tar) as old:
            files = [(info.name, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
        with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as new:
            offsets = []
            for number, (name, was) in enumerate(files):
                offsets.append(new.offset + 512)
                member(name, content if number == 1 else was)(new)
        table = parse_index(tar.with_suffix(".parquet").read_bytes())
        column = pa.array(offsets[::2], pa.int64())
        reseal(root, table.set_column(table.schema.get_field_index("offset"), "offset", column), shards[0], shards[1:])

    return change


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}", "JSON is damaged (maximum recursion"),
        (b'{"num_samples": ' + b"9" * 10_000 + b"}", "JSON is damaged"),
        (b"[]", "JSON is damaged"),
        (b'{"sound": NaN}', "JSON is damaged"),
        (b"\xff\xfe", "JSON is damaged"),
    ],
)
def test_bombs_in_json_are_named(packed: Path, content: bytes, words: str) -> None:
    with_json(content)(packed)
    problems = verify(packed)
    assert any("mini-s1c0" in problem and words in problem for problem in problems), problems
    assert not any("s1c1" in problem or "sha256" in problem for problem in problems)


def forged_index(root: Path, **columns: list[object]) -> None:
    """The first shard's index with other values in its first rows."""
    shards = [Shard(**shard) for shard in read_dataset(root)["shards"]]
    table = parse_index((root / shards[0].path).with_suffix(".parquet").read_bytes())
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        column = [*values, *table.column(name).to_pylist()[len(values) :]]
        table = table.set_column(at, field, pa.array(column, field.type))
    reseal(root, table, shards[0], shards[1:])


@pytest.mark.parametrize(
    "columns",
    [{"offset": [-1]}, {"offset": [1 << 62]}, {"size": [1 << 62]}, {"size": [0]}, {"num_samples": [-5]}, {"key": [None]}],
)
def test_an_index_that_points_out_of_its_tar_is_refused(packed: Path, columns: dict[str, list[object]]) -> None:
    forged_index(packed, **columns)
    with pytest.raises(UserError, match=r"index .* is not what packing writes"):
        ShardIndex.load(packed)
    assert any("is not what packing writes" in problem for problem in verify(packed))


@pytest.mark.parametrize("extra", ["[" * 100_000, '{"age": {"deep": 1}}', "7"])
def test_metadata_that_packing_never_wrote_is_named(packed: Path, extra: str) -> None:
    forged_index(packed, extra=[extra])
    assert any("mini-s1c0" in problem and ("`extra`" in problem or "JSON" in problem) for problem in verify(packed))


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../../elsewhere/mini-1-000000.tar"},
        {"path": "/etc/passwd"},
        {"path": "1/../1/mini-1-000000.tar"},
        {"group": ".."},
        {"clips": -1},
        {"bytes": "many"},
        {"seconds": None},
        {"more": 1},
    ],
)
def test_a_dataset_that_names_files_outside_is_refused(packed: Path, change: dict[str, object]) -> None:
    dataset = read_dataset(packed)
    dataset["shards"][0] |= change
    (packed / DATASET).write_text(json.dumps(dataset))
    with pytest.raises(UserError, match="damaged"):
        ShardIndex.load(packed)
    assert verify(packed) != []


@pytest.mark.parametrize("content", [b"[" * 100_000, b"7", b"[]", b'{"version": 2, "shards": 5}', b"\xff", b"null"])
def test_a_dataset_file_that_is_none_is_refused(packed: Path, content: bytes) -> None:
    (packed / DATASET).write_bytes(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        ShardIndex.load(packed)
    assert len(verify(packed)) == 1


def test_a_flac_that_announces_hours_is_no_clip() -> None:
    """Its header is believed by libsndfile, which would set that memory aside."""
    flac = bytearray(audio.encode_flac(np.zeros(16_000, np.int16)))
    flac[21] |= 0x0F  # the upper bits of the number of samples in STREAMINFO
    flac[22:26] = b"\xff" * 4
    with pytest.raises(audio.BadClipError, match="announces 68719476735 samples"):
        audio.decode_flac(bytes(flac))
    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(16_000, np.int16), 16_000, format="WAV")
    with pytest.raises(audio.BadClipError, match="is not FLAC"):
        audio.decode_flac(wav.getvalue())


def test_verifying_needs_little_memory(tmp_path: Path, make_corpus: Callable) -> None:
    """Of a tar of 130 MB of zeros, with a clip in front that announces them all, little is ever in memory."""
    pack(make_corpus(sessions=1, clips=2), tmp_path / "out", workers=1)
    (shard,) = (Shard(**shard) for shard in read_dataset(tmp_path / "out")["shards"])
    tar = tmp_path / "out" / shard.path
    forge(tmp_path / "out", announced("a.json", 120_000_000))
    with tar.open("ab") as file:
        file.truncate(130_000_000)  # sparse
    table = parse_index(tar.with_suffix(".parquet").read_bytes())
    reseal(tmp_path / "out", table, shard, [])
    code = (
        "import resource, sys; from pathlib import Path; from ser_hpc.shards.verify import verify\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; problems = verify(Path(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before); print(*problems)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True)
    grown, words = result.stdout.split("\n", 1)
    assert "of 120000000 bytes, which no clip of ours is" in words
    assert int(grown) < 40_000  # KiB
