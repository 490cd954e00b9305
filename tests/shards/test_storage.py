"""Shards behind a URL: the same clips, the same checks, the same words when something is wrong."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from small import without_index_file

from ser_hpc.core.errors import UserError
from ser_hpc.data.staging import stage
from ser_hpc.shards import as_webdataset, storage
from ser_hpc.shards.index import DATASET, ShardIndex
from ser_hpc.shards.read import ClipReader, CorruptClipError, CorruptionCause, ShardReader, clip_extents
from ser_hpc.shards.storage import Location, Url, parse_location
from ser_hpc.shards.write import pack


class Server(SimpleHTTPRequestHandler):
    """A web server that knows ranges, if it is told to; `asked` collects the ranges."""

    def __init__(self, *arguments: object, asked: list[str], ranges: bool, **options: object) -> None:
        self.asked, self.ranges = asked, ranges
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not (wanted and self.ranges and path.is_file()):
            super().do_GET()
            return
        self.asked.append(self.headers["Range"])
        content = path.read_bytes()[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "_WAITS_S", ())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where indices are copied to


@pytest.fixture
def packed(tmp_path: Path, make_corpus: Callable) -> Path:
    pack(make_corpus(), tmp_path / "out", workers=1)
    return tmp_path / "out"


@pytest.fixture
def serve(packed: Path) -> Iterator[Callable[..., tuple[str, list[str]]]]:
    servers = []

    def start(*, ranges: bool = True) -> tuple[str, list[str]]:
        asked: list[str] = []
        handler = functools.partial(Server, directory=str(packed), asked=asked, ranges=ranges)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def in_memory(packed: Path, name: str) -> str:
    store = fsspec.filesystem("memory")
    for path in packed.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/{name}/{path.relative_to(packed)}", path.read_bytes())
    return f"memory://{name}"


def everything(where: Location) -> list[np.ndarray]:
    index = ShardIndex.load(where)
    found = ClipReader(index.roots).read(clip_extents(index, np.arange(len(index.metadata))))
    assert all(isinstance(samples, np.ndarray) for samples in found)
    return [np.asarray(samples) for samples in found]


@pytest.mark.parametrize("kind", ["memory", "http", "file"])
def test_a_store_gives_what_the_folder_gives(packed: Path, serve: Callable, kind: str) -> None:
    """The index with its fingerprint, one clip by its position, and all clips at once."""
    url = {"memory": lambda: in_memory(packed, "same"), "http": lambda: serve()[0], "file": lambda: f"file://{packed}"}[kind]()
    local, remote = ShardIndex.load(packed), ShardIndex.load(parse_location(url))
    assert remote.fingerprint == local.fingerprint
    with ShardReader(remote) as reader, ShardReader(local) as ours:
        np.testing.assert_array_equal(reader.read(5), ours.read(5))
    for theirs, here in zip(everything(parse_location(url)), everything(packed), strict=True):
        np.testing.assert_array_equal(theirs, here)


def test_neighbours_in_a_shard_come_with_one_request(packed: Path, serve: Callable) -> None:
    url, asked = serve()
    index = ShardIndex.load(parse_location(url))
    clips = np.random.default_rng(0).permutation(len(index.metadata))
    ClipReader(index.roots).read(clip_extents(index, clips))
    assert len(asked) == len(index.shards)


def test_damage_behind_a_url_is_named_as_in_a_folder(packed: Path) -> None:
    without_index_file(packed)  # one behind a URL: test_mapped_index.py
    url = in_memory(packed, "damaged")
    index = ShardIndex.load(parse_location(url))
    store, tar = fsspec.filesystem("memory"), f"/damaged/{index.shards[1].path}"
    content = bytearray(store.cat_file(tar))
    content[int(index.offset[5] + index.size[5] // 2)] ^= 1
    store.pipe_file(tar, bytes(content[: int(index.offset[7] + 3)]))
    found = ClipReader(index.roots).read(clip_extents(index, [4, 5, 7]))
    assert isinstance(found[0], np.ndarray)
    causes = [error.cause for error in found[1:] if isinstance(error, CorruptClipError)]
    assert causes == [CorruptionCause.CHANGED, CorruptionCause.CUT_OFF]
    assert f"{index.key(5)} in shard {url}/{index.shards[1].path} is damaged" in str(found[1])
    with pytest.raises(UserError, match=r"bytes instead of"):
        ShardIndex.load(parse_location(url))
    store.rm(tar)
    with pytest.raises(UserError, match=r"memory://damaged.*\.tar is missing"):
        ShardIndex.load(parse_location(url))
    with pytest.raises(UserError, match=r"memory://damaged.*\.tar cannot be read"):
        ClipReader(index.roots).read(clip_extents(index, [5, 0]))
    parquet = f"/damaged/{index.shards[0].path}".replace(".tar", ".parquet")
    store.pipe_file(tar, bytes(content))
    store.pipe_file(parquet, store.cat_file(parquet)[:-1] + b"?")
    with pytest.raises(UserError, match=r"index memory://damaged.* is damaged"):
        ShardIndex.load(parse_location(url))
    store.rm(f"/damaged/{DATASET}")
    with pytest.raises(UserError, match="memory://damaged has shards but no"):
        ShardIndex.load(parse_location(url))


def test_a_server_without_ranges_one_that_is_gone_and_unknown_stores_are_user_errors(packed: Path, serve: Callable) -> None:
    url, _ = serve(ranges=False)
    index = ShardIndex.load(parse_location(url))
    with pytest.raises(UserError, match="sends whole files"):
        ClipReader(index.roots).read(clip_extents(index, [0]))
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/dataset\.json cannot be read"):
        ShardIndex.load(parse_location("http://127.0.0.1:9"))
    with pytest.raises(UserError, match="nosuch"):
        ShardIndex.load(parse_location("nosuch://bucket"))


def test_a_moment_without_an_answer_is_passed_over(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = in_memory(packed, "moody")
    index = ShardIndex.load(parse_location(url))
    monkeypatch.setattr(storage, "_WAITS_S", (0.0, 0.0))
    store = fsspec.filesystem("memory")
    real, failures = type(store).cat_ranges, iter([ConnectionError, TimeoutError])

    def moody(*arguments: object, **options: object) -> object:
        if error := next(failures, None):
            raise error("not now")
        return real(*arguments, **options)

    monkeypatch.setattr(type(store), "cat_ranges", moody)
    with ShardReader(index) as reader:
        assert len(reader.read(0)) == index.num_samples[0]


def test_shards_behind_a_url_are_staged_like_others(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ser_hpc.data.staging.MARGIN_BYTES", 0)
    index = ShardIndex.load(parse_location(in_memory(packed, "staged")))
    (folder,), said = stage(index, np.arange(len(index.metadata)), tmp_path / "node", wait_s=1)
    assert f"{len(index.shards)} copied" in said and isinstance(folder, Path)
    for shard in index.shards:
        assert (folder / shard.path).read_bytes() == (packed / shard.path).read_bytes()
    fsspec.filesystem("memory").rm("/staged", recursive=True)
    with ShardReader(index, [folder]) as reader:
        assert len(reader.read(0)) == index.num_samples[0]


def test_a_url_is_a_place_like_a_path() -> None:
    url = parse_location("s3://bucket/shards/")
    assert isinstance(url, Url)
    assert str((url / "s1/a.tar").with_suffix(".parquet")) == "s3://bucket/shards/s1/a.parquet"
    assert parse_location("file:///data/x") == parse_location("/data/x") == Path("/data/x")


def test_a_web_server_is_streamed_from_and_other_stores_are_refused(packed: Path, serve: Callable) -> None:
    """What webdataset itself can open (by curl), with our checks."""
    url, _ = serve()
    whole, streamed = list(as_webdataset(packed)), list(as_webdataset(url))
    assert [sample["__key__"] for sample in streamed] == [sample["__key__"] for sample in whole]
    assert all(np.array_equal(a["audio"], b["audio"]) for a, b in zip(streamed, whole, strict=True))
    with pytest.raises(UserError, match="webdataset streams from folders and web servers alone"):
        as_webdataset(in_memory(packed, "streamed"))
