"""What a file system lacks never costs anything that was finished: links, locks, renaming over a file, syncing folders."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import packed_tones, planned

from ser_hpc.core import atomic_io
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.run_dir import Trial

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO, errno.EMLINK, errno.EINVAL, errno.EACCES)
# A Python whose file system is as poor as can be.
POOR = """
import errno, fcntl, os, stat
rename, fsync = os.rename, os.fsync
def refused(*_, **__):
    raise OSError(errno.EIO, "no links, no locks")
def rename_to_a_free_name(source, target, **more):
    if os.path.exists(target) and not os.path.isdir(source):
        raise OSError(errno.EEXIST, "it is there")
    rename(source, target, **more)
def fsync_of_files(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "a folder")
    fsync(descriptor)
os.link = fcntl.flock = refused
os.rename = os.replace = rename_to_a_free_name
os.fsync = fsync_of_files
"""


def refusing(number: int) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("number", NO_LINKS, ids=errno.errorcode.get)
def test_a_marker_is_written_once_without_links(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    path = tmp_path / "done.json"
    assert atomic_io.write_json_once(path, {"attempt": 1})
    assert not atomic_io.write_json_once(path, {"attempt": 2})
    assert atomic_io.read_json(path) == {"attempt": 1} and names(tmp_path) == ["done.json"]


def test_a_link_that_was_made_although_an_error_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over NFS, when the answer is lost and the question asked again."""
    link = os.link

    def made_then_refused(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", made_then_refused)
    assert atomic_io.write_once(tmp_path / "done.json", b"1") and (tmp_path / "done.json").read_bytes() == b"1"


def test_of_many_without_links_one_is_first(tmp_path: Path) -> None:
    """Processes at the same moment, a hundred times: one True each time, and that one's content."""
    program = (
        "import errno, os, pathlib, sys, time\n"
        "from ser_hpc.core import atomic_io as files\n"
        "def refuse(*_): raise OSError(errno.ENOSYS, 'no links')\n"
        "os.link = refuse\n"
        "me, folder, at = sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3])\n"
        "time.sleep(max(0, at - time.time()))\n"
        "print(*(int(files.write_once(folder / str(n), f'{me}'.encode() * 9)) for n in range(100)))\n"
    )
    began = str(time.time() + 2)
    command = [sys.executable, "-c", program]
    started = [
        subprocess.Popen([*command, str(me), str(tmp_path), began], stdout=subprocess.PIPE, text=True) for me in range(4)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in started]
    for number in range(100):
        (winner,) = (me for me in range(4) if said[me][number] == "1")
        assert (tmp_path / str(number)).read_text() == str(winner) * 9


def test_a_claim_that_a_kill_has_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EIO))
    monkeypatch.setattr(atomic_io, "_CLAIM_S", 0.2)
    (tmp_path / ".done.json.claim").mkdir()
    assert atomic_io.write_once(tmp_path / "done.json", b"whole")
    assert (tmp_path / "done.json").read_bytes() == b"whole" and names(tmp_path) == ["done.json"]


def test_a_claim_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder is about to rename: the other gets False, not a second marker."""
    monkeypatch.setattr(os, "link", refusing(errno.EIO))
    (tmp_path / ".done.json.claim").mkdir()
    timer = threading.Timer(0.3, (tmp_path / "done.json").write_text, ["theirs"])
    timer.start()
    assert not atomic_io.write_once(tmp_path / "done.json", b"ours")
    timer.join()
    assert (tmp_path / "done.json").read_text() == "theirs"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_no_half_marker(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no links either: the trial would count as done for ever."""
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(os, "rename", refusing(number))
    sync = atomic_io.fsync_path

    def full(path: Path) -> None:
        if path.name == "done.json":
            raise OSError(number, os.strerror(number))
        sync(path)

    monkeypatch.setattr(atomic_io, "fsync_path", full)
    with pytest.raises(OSError, match=os.strerror(number)):
        atomic_io.write_once(tmp_path / "done.json", b"1")
    assert not names(tmp_path)


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EPERM, errno.EIO, errno.ENOSYS], ids=errno.errorcode.get)
def test_files_are_replaced_where_renaming_over_one_is_refused(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", refusing(number))
    path = tmp_path / "plan.json"
    path.write_text("old")
    atomic_io.write_json(path, {"new": 1})
    assert atomic_io.read_json(path) == {"new": 1} and names(tmp_path) == ["plan.json"]


def test_what_was_there_stays_if_the_new_cannot_be_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename
    monkeypatch.setattr(os, "replace", refusing(errno.EIO))

    def only_away(source: Path, target: Path) -> None:
        if Path(source).suffix == ".tmp":
            raise OSError(errno.EIO, "the disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", only_away)
    path = tmp_path / "plan.json"
    path.write_text("old")
    with pytest.raises(OSError, match="the disk is gone"):
        atomic_io.write_json(path, {"new": 1})
    assert path.read_text() == "old" and names(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO, errno.EINVAL])
def test_without_locks_nobody_is_kept_out(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        atomic_io.file_lock(tmp_path / "lock"),
        pytest.raises(BlockingIOError),
        atomic_io.file_lock(tmp_path / "lock", wait=False),
    ):
        pass
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with atomic_io.file_lock(tmp_path / "lock"), atomic_io.file_lock(tmp_path / "lock", wait=False):
        pass


def test_a_trial_is_trained_and_kept_on_the_poorest_file_system(tmp_path: Path) -> None:
    """In one attempt, to its marker: without links, locks, renaming over a file and syncing of folders."""
    run = planned(tmp_path / "runs", packed_tones(tmp_path), "train.epochs=2", "train.checkpoint_minutes=0.001")
    (tmp_path / "poor").mkdir()
    (tmp_path / "poor" / "sitecustomize.py").write_text(POOR)
    command = [sys.executable, "-m", "ser_hpc.train", "--run-dir", str(run.path), "--fold", "0"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "poor"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    trial = run.trial(Trial(0, 0))
    assert done.returncode == 0, done.stdout + done.stderr
    assert trial.is_done and trial.weights.exists() and len(trial.attempts) == 1
    assert read_end(trial.current).outcome == "done"
    assert json.loads(trial.current.progress.read_text())["state"] == "done"
