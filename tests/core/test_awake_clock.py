"""Time in which a process was stopped is not counted, whoever asks first afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

ASKS = """
import sys
from ser_hpc.core.awake_clock import awake_s, stopped_s
began = awake_s()
print("begins", flush=True)
sys.stdin.readline()
print(awake_s() - began, stopped_s(), flush=True)
"""


def test_time_in_which_it_was_stopped_does_not_count() -> None:
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", ASKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdout.readline()
    time.sleep(2)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.stdin.write("now\n")
    process.stdin.flush()
    process.send_signal(signal.SIGCONT)
    awake, stopped = map(float, process.stdout.readline().split())
    passed = time.monotonic() - began
    process.wait()
    assert stopped > 4.9 and awake + stopped <= passed
    assert awake > 0.4  # up to its last look before the stop
