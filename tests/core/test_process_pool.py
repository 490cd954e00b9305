"""Work in other processes: what they raise arrives, whenever one is killed it is told, and none outlives its parent."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from ser_hpc.core.process_pool import ProcessPool, WorkerKilledError

LARGE = 4_000_000  # bytes: many times what a pipe holds
_begun: list[str] = []

# Starts a worker and ends without a word to it.
FORGETFUL = """
from ser_hpc.core.process_pool import ProcessPool
if __name__ == "__main__":
    pool = ProcessPool(2, print, "begun")
    print(pool.submit(len, "four").result(), *pool.pids, flush=True)
"""


def begin(word: str) -> None:
    _begun.append(word)


def told() -> tuple[int, list[str]]:
    return os.getpid(), _begun


def large(_: int) -> bytes:
    return bytes(LARGE)


def fails(kind: type[Exception]) -> None:
    raise kind("no luck")


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    made = ProcessPool(2, begin, "ready")
    yield made
    made.close()


def test_each_begins_once_and_what_it_raises_arrives(pool: ProcessPool) -> None:
    answers = [pool.submit(told) for _ in range(20)]
    assert {pid for pid, _ in (answer.result() for answer in answers)} <= set(pool.pids)
    assert all(words == ["ready"] for _, words in (answer.result() for answer in answers))
    with pytest.raises(KeyError, match="no luck") as raised:
        pool.submit(fails, KeyError).result()
    assert "in fails" in raised.value.__notes__[0]  # where in the worker it was raised
    assert pool.submit(told).result()[0] in pool.pids


def test_whenever_one_is_killed_it_is_told() -> None:
    """In the middle of a result too, of which half has arrived; the work of the other one still comes."""
    rng = random.Random(0)
    for _ in range(12):
        pool = ProcessPool(2, begin, "ready")
        wait([pool.submit(large, i) for i in range(2)], timeout=60)
        answers = [pool.submit(large, i) for i in range(200)]
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pool.pids[0], signal.SIGKILL)
        done, waiting = wait(answers, timeout=60)
        assert not waiting
        errors = {type(answer.exception()) for answer in done}
        assert WorkerKilledError in errors and errors <= {WorkerKilledError, type(None)}
        assert all(len(answer.result()) == LARGE for answer in done if answer.exception() is None)
        pool.close()


def test_a_program_that_forgets_to_close_ends_and_so_do_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "forgetful.py"
    script.write_text(FORGETFUL)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    (line,) = (line for line in done.stdout.splitlines() if line != "begun")  # which a worker may say as late as at its end
    answer, pid = (int(word) for word in line.split())
    assert (done.returncode, answer, done.stderr) == (0, 4, "")
    assert not Path(f"/proc/{pid}").exists()
