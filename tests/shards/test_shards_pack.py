"""Packing refuses bad input whole, survives being stopped anywhere, and always ends in the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from ser_hpc.core.errors import UserError
from ser_hpc.pack import main
from ser_hpc.shards.assignment import assign_shards
from ser_hpc.shards.index import DATASET, ShardIndex
from ser_hpc.shards.verify import verify
from ser_hpc.shards.write import pack

Tree = Callable[[Path], dict[str, bytes]]
ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def table(tmp_path: Path, utterances: list) -> Path:
    path = tmp_path / "mini.csv"
    rows = [f"{u.audio_path},{u.emotion},{u.speaker},{u.session}" for u in utterances]
    path.write_text("\n".join(["audio,emotion,speaker,session", *rows]) + "\n")
    return path


def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path, make_corpus: Callable, tree: Tree) -> None:
    utterances = make_corpus()
    one = pack(utterances, tmp_path / "one", workers=1)
    three = pack(list(reversed(utterances)), tmp_path / "three", workers=3)
    assert one == three
    assert tree(tmp_path / "one") == tree(tmp_path / "three")
    assert verify(tmp_path / "one") == []


def started(tmp_path: Path, utterances: list, out: Path) -> subprocess.Popen[bytes]:
    """A packer on two processes that has begun to write shards."""
    command = [sys.executable, "-m", "ser_hpc.pack", "csv", str(table(tmp_path, utterances)), str(out), "--workers", "2"]
    packer = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not list(out.glob("*/.*.tmp")):
        assert time.monotonic() < deadline
        assert packer.poll() is None
        time.sleep(0.002)
    return packer


def processes(group: int) -> int:
    """How many processes of a process group are alive."""
    alive = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        alive += fields[0] != "Z" and int(fields[2]) == group
    return alive


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_packer_leaves_no_process_and_can_go_on(tmp_path: Path, make_corpus: Callable, tree: Tree, number: int) -> None:
    """Killed (the parent alone: its workers must notice) or Ctrl-C (exit code 130, no temporaries); what was packed stays."""
    utterances, out = make_corpus(sessions=2, clips=160, seconds=15.0), tmp_path / "out"
    packer = started(tmp_path, utterances, out)
    began = time.monotonic()
    packer.send_signal(number)
    _, errors = packer.communicate(timeout=20)
    while processes(packer.pid):
        assert time.monotonic() - began < 10
        time.sleep(0.01)
    assert not (out / DATASET).exists()
    if number == signal.SIGINT:
        assert packer.returncode == 130
        assert errors.decode().splitlines()[-1] == "interrupted"
        assert "Traceback" not in errors.decode()
        assert list(out.rglob("*.tmp")) == []
    main(["csv", str(table(tmp_path, utterances)), str(out), "--workers", "1"])
    assert verify(out) == []
    assert list(out.rglob("*.tmp")) == []


def test_killed_worker_is_an_error_in_words_not_a_hang(tmp_path: Path, make_corpus: Callable) -> None:
    packer = started(tmp_path, make_corpus(sessions=4, clips=20, seconds=4.0), tmp_path / "out")
    children = [pid for file in Path(f"/proc/{packer.pid}/task").glob("*/children") for pid in file.read_text().split()]
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = packer.communicate(timeout=20)
    assert packer.returncode == 2
    assert "a worker process was killed" in errors.decode()


def test_second_packer_into_the_same_folder_is_refused(
    tmp_path: Path, make_corpus: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ser_hpc.shards.output_dir._LOCK_WAIT_SECONDS", 0.1)
    utterances = make_corpus(sessions=4, clips=20, seconds=4.0)
    packer = started(tmp_path, utterances, tmp_path / "out")
    try:
        packer.send_signal(signal.SIGSTOP)  # it must still be there when the second one comes
        with pytest.raises(UserError, match="another process is packing"):
            pack(utterances[:2], tmp_path / "out", workers=1)
    finally:
        os.killpg(packer.pid, signal.SIGKILL)
        packer.communicate()


def test_finished_packing_again_changes_nothing(tmp_path: Path, make_corpus: Callable, tree: Tree) -> None:
    utterances, out = make_corpus(), tmp_path / "out"
    pack(utterances, out, workers=1)
    before, times = tree(out), {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    assert pack(utterances, out, workers=1).kept == 3
    assert tree(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*")} == times


@pytest.mark.parametrize("change", ["emotion", "sound", "gone clip", "new session", "gone session"])
def test_a_change_packs_only_what_differs(tmp_path: Path, make_corpus: Callable, tree: Tree, change: str) -> None:
    utterances, out = make_corpus(), tmp_path / "out"
    pack(utterances[:-4] if change == "new session" else utterances, out, workers=1)
    old = ShardIndex.load(out).fingerprint
    if change == "emotion":
        utterances[0] = replace(utterances[0], emotion="sadness")
    if change == "sound":  # of the same length, so that neither header nor file size tells
        samples, rate = soundfile.read(utterances[0].audio_path, dtype="int16")
        soundfile.write(utterances[0].audio_path, samples // 2, rate, subtype="PCM_16")
    utterances = {"gone clip": utterances[1:], "gone session": utterances[4:]}.get(change, utterances)
    report = pack(utterances, out, workers=1)
    assert (report.kept, report.shards) == ((2, 2) if change == "gone session" else (2, 3))
    assert ShardIndex.load(out).fingerprint != old
    pack(utterances, tmp_path / "afresh", workers=1)
    assert tree(out) == tree(tmp_path / "afresh")


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_packing_again_mends_damage(tmp_path: Path, make_corpus: Callable, tree: Tree, damage: str, suffix: str) -> None:
    utterances, out = make_corpus(), tmp_path / "out"
    pack(utterances, out, workers=1)
    before = tree(out)
    path = out / f"2/mini-2-000000.{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-700])
    assert pack(utterances, out, workers=1).kept == 2
    assert tree(out) == before


def test_counts_add_up(tmp_path: Path, make_corpus: Callable) -> None:
    report = pack(make_corpus(sessions=3, clips=4), tmp_path / "out", workers=1)
    for column in ("emotion", "speaker", "session"):
        counts = report.counts["mini"][column]
        assert sum(count.clips for count in counts.values()) == report.clips == 12
        assert sum(count.seconds for count in counts.values()) == pytest.approx(report.seconds, abs=0.01)
    assert report.counts["mini"]["emotion"]["joy"].clips == 6
    assert "gender" not in report.counts["mini"]
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*/*.tar"))


def test_keys_must_be_unique_and_fit_a_tar(tmp_path: Path, make_corpus: Callable) -> None:
    utterances = make_corpus(sessions=1, clips=2)
    with pytest.raises(UserError, match="more than one clip"):
        pack([*utterances, utterances[0]], tmp_path / "out", workers=1)
    long = replace(utterances[0], corpus="c" * 24, utterance_id="u" * 80)
    with pytest.raises(UserError, match="longer than the 95"):
        pack([long], tmp_path / "out", workers=1)
    fits = replace(utterances[0], corpus="c" * 20, utterance_id="u" * 74)
    pack([fits], tmp_path / "out", workers=1)
    assert verify(tmp_path / "out") == []


def test_groups_never_share_a_shard_and_large_ones_are_cut(make_corpus: Callable) -> None:
    """Session, else speaker, else buckets of speakers; odd names stay apart; limits are kept by durations alone."""
    by_session = make_corpus(sessions=2, clips=6)
    utterances = [replace(u, session={"1": "day 1", "2": "day_1"}[u.session]) for u in by_session]
    shards = assign_shards(utterances, [20.0] * 12, shard_mb=1).shards
    assert len({shard.group for shard in shards}) == 2
    for shard in shards:
        assert len({u.session for u in shard.utterances}) == 1
        assert shard.estimated_bytes <= 1_000_000
    assert sum(len(shard.utterances) for shard in shards) == 12
    speakers = [replace(u, session="") for u in by_session]
    assert {shard.group for shard in assign_shards(speakers, [1.0] * 12, 64).shards} == {u.speaker for u in speakers}
    crowd = [replace(by_session[0], session="", speaker=f"s{i}", utterance_id=f"u{i}") for i in range(500)]
    buckets = assign_shards(crowd, [1.0] * 500, 64).shards
    assert len(buckets) <= 64
    assert {u.speaker for shard in buckets for u in shard.utterances} == {f"s{i}" for i in range(500)}


def test_folders_of_others_are_left_alone(tmp_path: Path, make_corpus: Callable) -> None:
    utterances = make_corpus(sessions=1, clips=2)
    with pytest.raises(UserError, match="not empty"):
        pack(utterances, tmp_path / "corpus", workers=1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        pack(utterances, tmp_path / "file", workers=1)
    pack(utterances, tmp_path / "out", workers=1)
    with pytest.raises(UserError, match="holds shards of mini"):
        pack([replace(u, corpus="other") for u in utterances], tmp_path / "out", workers=1)
    assert verify(tmp_path / "out") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mount], check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_disk_that_fills_up_leaves_nothing_half_written(
    tmp_path: Path, make_corpus: Callable, small_disk: Path, workers: int
) -> None:
    """Loud noise takes more than the estimate for speech: 3 shards of about 1.3 MB instead of 0.9."""
    utterances, out = make_corpus(sessions=3, clips=11, seconds=4.0), small_disk / "out"
    with pytest.raises(UserError, match=r"No space left.*run the same command again"):
        pack(utterances, out, workers=workers)
    assert list(out.rglob("*.tmp")) == []
    assert not (out / DATASET).exists()
    finished = list(out.glob("*/*.parquet"))
    assert {path.with_suffix(".tar") for path in finished} <= set(out.glob("*/*.tar"))
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    assert pack(utterances, out, workers=1).kept == len(finished)
    assert verify(out) == []


def test_disk_that_is_too_small_is_refused_before_writing(make_corpus: Callable, small_disk: Path) -> None:
    with pytest.raises(UserError, match=r"needs about 3\.\d MB .*only 3\.\d MB are free"):
        pack(make_corpus(sessions=3, clips=11, seconds=5.4), small_disk / "out", workers=1)
    assert not list((small_disk / "out").glob("*/*"))
