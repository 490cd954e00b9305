"""A rank that hangs ends itself; one that was stopped with its job and goes on does not, however long that was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

BUSY = """
import time
from ser_hpc.engine.fault.watchdog import Watchdog
with Watchdog(3, lambda: print("hung", flush=True), 7, second_s=0) as watchdog:
    print("begins", flush=True)
    for number in range(6):
        for _ in range(12):  # as it is woken, only one of these is over: its next sign of life is a second away
            time.sleep(0.1)
        watchdog.beat()
print("done", flush=True)
"""
HANGS = """
import ctypes, os, time
from ser_hpc.engine.fault.watchdog import Watchdog
def here():
    WHAT
with Watchdog(1, lambda: print("hung", flush=True), 7, second_s=1):
    here()
"""


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["the job", "the rank alone"])
def test_time_in_which_it_was_stopped_does_not_count(send: Callable[[int, int], None]) -> None:
    """For twice its limit: neither of its two lines may end it, then or in the moment in which it goes on."""
    process = start(BUSY)
    assert process.stdout is not None and process.stdout.readline() == "begins\n"
    time.sleep(1)
    send(process.pid, signal.SIGSTOP)
    time.sleep(6)
    send(process.pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "done\n")


def test_a_hang_is_written_down_and_ends() -> None:
    process = start(HANGS.replace("WHAT", "time.sleep(100)"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 7 and "hung" in output and "in here" in output, output


def test_a_hang_that_keeps_the_interpreter_ends_too() -> None:
    """No thread of Python runs any more, so nothing is written down; but where it hangs is told."""
    process = start(HANGS.replace("WHAT", "ctypes.PyDLL(None).read(os.pipe()[0], b' ', 1)"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and "in here" in output and "hung" not in output, output


def test_its_second_line_ends_with_it() -> None:
    """Be it killed: nothing of a job is left on a node."""
    process = start(BUSY)
    assert process.stdout is not None and process.stdout.readline() == "begins\n"
    process.kill()
    process.wait()
    assert process.stdout.read() == ""  # at its end: who else had this pipe open has gone, too
