"""How ranks meet: on this machine, whatever stands in the environment; and waiting for others ends when it is asked to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from small import packed_tones, planned, run_here

from ser_hpc.core.errors import UserError
from ser_hpc.engine.distributed import world
from ser_hpc.engine.distributed.rendezvous import meet_ranks
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.rank import Rank
from ser_hpc.run.run_dir import Trial

NAMELESS = """
import socket
socket.gethostname = lambda: "no-such-host.invalid"
"""
MEETS = """
import os, sys
from datetime import timedelta
from pathlib import Path
from ser_hpc.engine.distributed import world
from ser_hpc.run.rank import rank_from_env
ranks = world.join_world(Path(sys.argv[1]), rank_from_env(os.environ), timedelta(seconds=60), timedelta(seconds=60))
sys.stdout.write(f"{ranks.broadcast_numbers(ranks.size)[0]}\\n")
ranks.shut_down()
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("meeting")


@pytest.fixture
def leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another job: its ranks, an address that nobody answers at, a Slurm step; and a host name that does not resolve."""
    left = {"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "9"}
    step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    for name, value in (left | step).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "sitecustomize.py").write_text(NAMELESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "nameless"))


def test_one_rank_alone_waits_for_nobody(tmp_path: Path, leftovers: None) -> None:
    began = time.monotonic()
    ranks = world.join_world(tmp_path, Rank(0, 1, 0, 1), timedelta(seconds=8))
    assert ranks.size == 1 and time.monotonic() - began < 4


def test_a_trial_of_two_ranks_among_leftovers(base: Path, tmp_path: Path, leftovers: None) -> None:
    run = planned(tmp_path, packed_tones(base), "train.epochs=1")
    assert run_here(run, Trial(0, 0), ranks=2) == {Trial(0, 0): 0}
    assert len(run.trial(Trial(0, 0)).attempts) == 1


def test_ranks_of_one_node_need_no_name_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of srun: in threads here, as nothing but the environment tells them apart from processes."""
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    with ThreadPoolExecutor(3) as threads:
        met = list(
            threads.map(lambda number: meet_ranks(tmp_path, Rank(number, 3, number, 3), timedelta(seconds=20)), range(3))
        )
    assert {host for _, host in met} == {"127.0.0.1"} and all(store.check(["here/0", "here/1", "here/2"]) for store, _ in met)
    assert not list(tmp_path.glob(".ranks-*"))


def knows_localhost() -> bool:
    try:
        return bool(socket.getaddrinfo("localhost", None))
    except OSError:
        return False


@pytest.mark.skipif(not knows_localhost(), reason="torchrun needs the name localhost (in Debian's package netbase)")
def test_torchruns_ranks_meet_at_its_store(tmp_path: Path) -> None:
    program = tmp_path / "meets.py"
    program.write_text(MEETS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program), str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout.split("\n")[:2] == ["2", "2"], done.stderr
    assert not list(tmp_path.glob(".ranks-*"))


def test_who_did_not_come_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rank 0 of 4 waited 0:00:00.5.* did not come, 1, 2, 3: did every task start"):
        meet_ranks(tmp_path, Rank(0, 4, 0, 4), timedelta(seconds=0.5))
    with pytest.raises(UserError, match=r"rank 1 of 4 waited 0:00:00.5.* for rank 0"):
        meet_ranks(tmp_path, Rank(1, 4, 1, 4), timedelta(seconds=0.5))
    assert not list(tmp_path.glob(".ranks-*"))


def test_waiting_for_others_ends_at_once_when_asked(base: Path, tmp_path: Path) -> None:
    """Ranks that never come would be waited for for minutes; a batch system gives some seconds between TERM and KILL."""
    run = planned(tmp_path, packed_tones(base), "train.epochs=1")
    ours = {"SER_HPC_START": "one", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "ser_hpc.train", "--run-dir", str(run.path), "--fold", "0"]
    process = subprocess.Popen(command, env=os.environ | ours, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 100
        while not list(tmp_path.rglob(".ranks-*.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert time.monotonic() - asked < 5
    assert process.returncode == 75 and "stopped before training began, while ranks gathered (SIGTERM)" in said
    assert read_end(run.trial(Trial(0, 0)).current).outcome == "stopped"
