"""Stopping what runs on this machine: said at once, waited for, said again, and nothing left, however often one is asked."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from ser_hpc.launchers import local, rank_process
from ser_hpc.launchers.detect import Machine
from ser_hpc.run.run_dir import RunDir, Trial

TWO = [Trial(0, 0), Trial(0, 1)]
# A rank with a child of its own, which saves for a while when asked to stop, or (deaf) does not.
RANK = """#!/bin/sh
trap 'sleep 1.5; echo saved >>{folder}/saved; exit 75' TERM
{deaf}
sleep 1000 &
echo $$ >>{folder}/ranks
while :; do sleep 0.1; done
"""


@pytest.fixture
def ranks(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ranks of two trials are the script above; the folder that they write into."""
    script = tmp_path / "rank"
    script.write_text(RANK.format(folder=tmp_path, deaf="trap '' TERM" if getattr(request, "param", False) else ""))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return tmp_path


def stopped(folder: Path, signals: Sequence[signal.Signals]) -> list[str]:
    """Run two trials of two ranks and send `signals` half a second apart; what is said."""
    said: list[str] = []
    machine = Machine(cores=4, gpus=(), slots=2, ranks=2, threads=1)

    def press() -> None:
        while not (folder / "ranks").exists() or len((folder / "ranks").read_text().split()) < 4:
            time.sleep(0.05)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    finger = threading.Thread(target=press)
    finger.start()
    with pytest.raises(KeyboardInterrupt):
        local.run_trials(RunDir(folder), TWO, machine, lambda jobs: None, report=said.append)
    finger.join()
    return said


def left(folder: Path) -> list[str]:
    """Processes of the ranks' sessions that live on; a moment after they were killed."""
    sessions = (folder / "ranks").read_text().split()
    time.sleep(0.3)
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            found += [path.parent.name] if session in sessions and state != "Z" else []
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_asked_twice_it_waits_for_what_is_being_saved(ranks: Path, number: signal.Signals) -> None:
    first, second = stopped(ranks, [number, number])
    assert first.startswith("Stopping: asked to save and end: seed 0 fold 0, seed 0 fold 1")
    assert second.startswith("Ranks are still saving: seed 0 fold 0, seed 0 fold 1; what is not done in ")
    assert (ranks / "saved").read_text().split() == ["saved"] * 4
    assert not left(ranks)


@pytest.mark.parametrize("ranks", [True], indirect=True, ids=["deaf"])
def test_what_does_not_end_is_killed_with_its_children(ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_GRACE_S", 2.0)
    began = time.monotonic()
    assert len(stopped(ranks, [signal.SIGINT] * 3)) == 3
    assert time.monotonic() - began < 15
    assert not (ranks / "saved").exists() and not left(ranks)


def test_what_a_shell_has_ignored_stays_ignored(ranks: Path) -> None:
    """nohup: the terminal may be closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        (first,) = stopped(ranks, [signal.SIGHUP, signal.SIGTERM])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert first.startswith("Stopping") and not left(ranks)


def test_exit_codes_are_known_where_ends_of_children_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started the launcher may ignore SIGCHLD, which is inherited: a rank that failed would count as done."""
    (script := tmp_path / "rank").write_text("#!/bin/sh\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        machine = Machine(cores=1, gpus=(), slots=1, ranks=1, threads=1)
        assert local.run_trials(RunDir(tmp_path), TWO, machine, lambda jobs: None) == dict.fromkeys(TWO, 2)
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_rank_that_cannot_be_started_leaves_no_fellow(ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process of a trial: no memory, say."""
    started = []

    class Popen(rank_process.subprocess.Popen):  # type: ignore[type-arg,misc]
        def __init__(self, *arguments: object, **options: object) -> None:
            if started:
                raise BlockingIOError("no more processes")
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            started.append(self)

    monkeypatch.setattr(rank_process.subprocess, "Popen", Popen)
    machine = Machine(cores=4, gpus=(), slots=1, ranks=2, threads=1)
    with pytest.raises(BlockingIOError):
        local.run_trials(RunDir(ranks), TWO, machine, lambda jobs: None)
    assert started[0].returncode == -signal.SIGKILL


# Ranks that train what they are given one after another; {fate} befalls the second trial.
IN_TURN = """#!/bin/sh
touch $SER_HPC_MARK
while [ "$1" != --trial ]; do shift; done
shift
for trial in "$@"; do
  name=$(echo $trial | tr : -)
  echo $trial >>{folder}/begun
  touch $SER_HPC_MARK-$name
  [ $trial != 0:1 ] || {fate}
  echo further >$SER_HPC_MARK-$name
  echo 0 >$SER_HPC_FINAL-$name
done
"""
FATES = {
    "killed": ("kill -9 $$", 2, 3),  # exit code; how often it begins
    "a mistake": ("{ echo 2 >$SER_HPC_FINAL-$name; exit 2; }", 2, 1),
    "superseded": ("{ echo 3 >$SER_HPC_FINAL-$name; exit 3; }", 3, 1),
    "stopped once": ("[ -e $0.once ] || { touch $0.once; echo further >$SER_HPC_MARK-$name; exit 75; }", 0, 2),
}


@pytest.mark.parametrize("fate", FATES)
def test_what_befalls_one_of_several_trials_is_counted_for_it_alone(
    fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished are not begun again, the others begin once, and only the one under way is given up."""
    what, code, starts = FATES[fate]
    script = tmp_path / "rank"
    script.write_text(IN_TURN.format(folder=tmp_path, fate=what))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(local, "_POLL_S", 0.02)
    machine, said, trials = Machine(cores=1, gpus=(), slots=1, ranks=1, threads=1), [], [Trial(0, fold) for fold in range(4)]
    codes = local.run_trials(RunDir(tmp_path), trials, machine, lambda jobs: None, per_job=4, report=said.append)
    assert codes == dict.fromkeys(trials, 0) | {trials[1]: code}
    begun = (tmp_path / "begun").read_text().split()
    assert [begun.count(f"0:{fold}") for fold in range(4)] == [1, starts, 1, 1]
    assert [line.partition(":")[0] for line in said] == ["seed 0 fold 1"] * (fate == "killed")
    assert not list((tmp_path / "jobs").glob(".*"))


def test_a_trial_that_another_launcher_has_completed_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process passes over it, and is killed in the next one each time."""
    script = tmp_path / "rank"
    script.write_text("#!/bin/sh\ntouch $SER_HPC_MARK-0-1\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(local, "_POLL_S", 0.02)
    machine, said = Machine(cores=1, gpus=(), slots=1, ranks=1, threads=1), []
    local.run_trials(RunDir(tmp_path), TWO, machine, lambda jobs: None, per_job=2, report=said.append)
    assert said[0].startswith("seed 0 fold 1: given up after 3 starts")


def test_trials_are_dealt_evenly_and_a_folds_seeds_to_one_job() -> None:
    trials = [Trial(seed, fold) for seed in range(3) for fold in range(5)]
    for slots, per_job, sizes in [(2, 32, [7, 8]), (1, 4, [3, 4, 4, 4]), (64, 32, [1] * 15), (2, 1, [1] * 15)]:
        jobs = local._deal(trials, slots, per_job)
        assert sorted(map(len, jobs)) == sizes and sorted(trial for job in jobs for trial in job) == trials
        assert all(list(job) == sorted(job) for job in jobs)
    assert sum(len({trial.fold for trial in job}) for job in local._deal(trials, 2, 32)) == 6
