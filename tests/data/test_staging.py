"""A staged shard is a whole, sound copy of ours, made once a node; whatever goes wrong, the clips are read, and it is said."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from small import packed_tones

from ser_hpc.data import staging
from ser_hpc.data.staging import stage
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ShardReader

# Stages as a rank does, and in the middle of each tar waits for a line or the end of its input. With a number, it kills itself
# at the n-th call that changes or syncs the disk.
STAGE = """
import os, shutil, signal, sys
from pathlib import Path
import numpy as np
from ser_hpc.data import staging
from ser_hpc.shards.index import ShardIndex
staging.MARGIN_BYTES = 0
root, where, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def counted(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
def in_halves(source, target):
    content = Path(source).read_bytes()
    Path(target).write_bytes(content[:len(content) // 2])
    os.fsync(0)
    print("copying", flush=True)
    sys.stdin.readline()
    Path(target).write_bytes(content)
os.fsync = counted(lambda descriptor: None)
os.replace, shutil.copyfile = counted(os.replace), in_halves
index = ShardIndex.load(root)
(folder,), said = staging.stage(index, np.arange(len(index.metadata)), where, wait_s=60)
print(folder, said, sep="\\n")
"""


class Packed(NamedTuple):
    root: Path
    index: ShardIndex


@pytest.fixture(autouse=True)
def _no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MARGIN_BYTES", 0)


@pytest.fixture
def packed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Four shards, of one session each, that a test may spoil."""
    root = Path(shutil.copytree(packed_tones(tmp_path_factory.getbasetemp()), tmp_path / "shards"))
    return Packed(root, ShardIndex.load(root))


def everything(index: ShardIndex) -> np.ndarray:
    return np.arange(len(index.metadata))


def tars(folder: Path) -> dict[str, bytes]:
    """Every file that has a shard's name, and everything half-written."""
    found = [path for path in folder.rglob("*") if path.suffix in (".tar", ".tmp")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def own_folder(where: Path) -> Path:
    return where / f"ser_hpc-{os.getuid()}"


def rank(packed: Packed, where: Path, die_at: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STAGE, str(packed.root), str(where), str(die_at)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_only_the_tars_of_the_clips_are_copied_and_read(packed: Packed, tmp_path: Path) -> None:
    """Read from the copy alone: the originals are gone."""
    index = packed.index
    positions = np.flatnonzero(index.shard != 2)
    with ShardReader(index) as reader:
        expected = [reader.read(position) for position in positions]
    (folder,), said = stage(index, positions, tmp_path / "node", wait_s=1)
    assert set(tars(folder)) == {shard.path for shard in index.shards if shard is not index.shards[2]}
    assert "3 of 4 needed, 3 copied" in said
    shutil.rmtree(packed.root)
    with ShardReader(index, [folder]) as reader:
        for position, samples in zip(positions, expected, strict=True):
            np.testing.assert_array_equal(reader.read(position), samples)


def test_the_next_start_neither_copies_nor_reads_again(packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(packed.index, np.array([0]), tmp_path, wait_s=1)
    (folder,), said = stage(packed.index, everything(packed.index), tmp_path, wait_s=1)
    assert "4 of 4 needed, 3 copied" in said  # another fold adds what it needs
    monkeypatch.setattr(staging, "_is_sound", lambda *_: pytest.fail("read again"))
    assert stage(packed.index, everything(packed.index), tmp_path, wait_s=1)[0] == (folder,)


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "record lost", "record damaged"])
def test_what_was_touched_since_is_checked_and_mended(packed: Packed, tmp_path: Path, damage: str) -> None:
    index = packed.index
    (folder,), _ = stage(index, everything(index), tmp_path / "node", wait_s=1)
    path, record = folder / index.shards[1].path, folder / "checked.json"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-512])
    if damage == "changed":
        path.write_bytes(content[:-512] + bytes([1]) * 512)
    if damage == "removed":
        path.unlink()
    if damage.startswith("record"):
        record.write_text('{"not": "whole') if damage == "record damaged" else record.unlink()
    (again,), said = stage(index, everything(index), tmp_path / "node", wait_s=1)
    assert again == folder
    assert ("all there" if damage.startswith("record") else "1 copied") in said
    assert tars(folder) == {shard.path: (packed.root / shard.path).read_bytes() for shard in index.shards}


@pytest.mark.parametrize("damage", ["bit", "removed"])
def test_a_copy_that_goes_bad_while_training_is_read_from_the_original(packed: Packed, tmp_path: Path, damage: str) -> None:
    index = packed.index
    (folder,), _ = stage(index, everything(index), tmp_path / "node", wait_s=1)
    with ShardReader(index) as reader:
        expected = reader.read(0)
    tar = folder / index.shards[0].path
    if damage == "removed":
        tar.unlink()
    else:
        content = bytearray(tar.read_bytes())
        content[index.offset[0] + index.size[0] // 2] ^= 1
        tar.write_bytes(content)
    with ShardReader(index, [folder]) as reader:
        np.testing.assert_array_equal(reader.read(0), expected)


def test_one_process_copies_while_the_others_wait(packed: Packed, tmp_path: Path) -> None:
    first, where = rank(packed, tmp_path / "node"), tmp_path / "node"
    assert first.stdout is not None
    assert first.stdout.readline() == "copying\n"
    (folder,), said = stage(packed.index, everything(packed.index), where, wait_s=0)
    assert (folder, "another process still copied" in said) == (packed.root, True)
    others = [rank(packed, where) for _ in range(2)]
    outputs = [process.communicate("", timeout=60)[0].splitlines() for process in (first, *others)]
    assert ["4 copied" in lines[-1] for lines in outputs] == [True, False, False]
    assert ["all there" in lines[-1] for lines in outputs] == [False, True, True]
    assert len({lines[-2] for lines in outputs}) == 1


@pytest.mark.parametrize("die_at", [1, 2, 4, 9])
def test_a_killed_copier_leaves_nothing_that_is_taken_for_whole(packed: Packed, tmp_path: Path, die_at: int) -> None:
    """Killed with half a tar written, before and after its renaming, and between two tars."""
    where, whole = tmp_path / "node", {shard.path: (packed.root / shard.path).read_bytes() for shard in packed.index.shards}
    copier = rank(packed, where, die_at)
    copier.communicate("", timeout=60)
    assert copier.returncode == -signal.SIGKILL
    left = tars(own_folder(where) / packed.index.fingerprint)
    assert all(content == whole[name] for name, content in left.items() if name.endswith(".tar"))
    (folder,), _ = stage(packed.index, everything(packed.index), where, wait_s=1)
    assert tars(folder) == whole


def test_too_little_space_falls_back_and_copies_nothing(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "MARGIN_BYTES", shutil.disk_usage(tmp_path).total)
    (folder,), said = stage(packed.index, everything(packed.index), tmp_path / "node", wait_s=1)
    assert folder == packed.root
    assert "MB are free" in said
    assert tars(tmp_path / "node") == {}


@pytest.mark.parametrize("damage", ["bit", "removed"])
def test_a_shard_that_is_not_what_was_packed_falls_back(packed: Packed, tmp_path: Path, damage: str) -> None:
    """Found on the way; the reader then says which clip is damaged, or that the shard is gone."""
    tar = packed.root / packed.index.shards[0].path
    if damage == "removed":
        tar.unlink()
    else:
        content = bytearray(tar.read_bytes())
        content[700] ^= 1
        tar.write_bytes(content)
    (folder,), said = stage(packed.index, everything(packed.index), tmp_path / "node", wait_s=1)
    assert folder == packed.root
    assert str(tar) in said
    assert tars(tmp_path / "node") == {}


@pytest.mark.parametrize("whose", ["another user's", "open to others", "a link", "a file"])
def test_a_folder_that_is_not_ours_alone_is_never_used(packed: Packed, tmp_path: Path, whose: str) -> None:
    """Sound copies lie in it, from before; even so."""
    where = tmp_path / "node"
    stage(packed.index, everything(packed.index), where, wait_s=1)
    home = own_folder(where)
    if whose == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(home, 12345, 12345)
    if whose == "open to others":
        home.chmod(0o777)
    if whose == "a link":
        home.rename(tmp_path / "elsewhere")
        home.symlink_to(tmp_path / "elsewhere")
    if whose == "a file":
        shutil.rmtree(home)
        home.touch()
    (folder,), said = stage(packed.index, everything(packed.index), where, wait_s=1)
    assert folder == packed.root
    assert "not a folder of ours alone" in said


def test_no_folder_can_be_made_there(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    (folder,), said = stage(packed.index, everything(packed.index), tmp_path / "node" / "local", wait_s=1)
    assert folder == packed.root
    assert f"Not a directory: {tmp_path / 'node' / 'local'}" in said


def test_nothing_of_others_is_deleted(packed: Packed, tmp_path: Path) -> None:
    """Neither other files on the disk nor the copies of another dataset."""
    (folder,), _ = stage(packed.index, everything(packed.index), tmp_path, wait_s=1)
    for path in (tmp_path / "mine.tmp", folder.parent / "other" / "s1" / ".x.tar.1.tmp", folder / "s1" / "notes.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("keep me")
    (folder / packed.index.shards[0].path).unlink()
    stage(packed.index, everything(packed.index), tmp_path, wait_s=1)
    assert len([path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"keep me"]) == 3
