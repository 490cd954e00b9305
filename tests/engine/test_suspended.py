"""Ranks that are stopped together for longer than any collective may take go on together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

RANK = """
import sys, time
from datetime import timedelta
from pathlib import Path
import os
import torch
from ser_hpc.engine.distributed import world
from ser_hpc.run.rank import rank_from_env
rank = rank_from_env(os.environ)
ranks = world.join_world(Path(sys.argv[1]), rank, timedelta(seconds=4))
print("begins", flush=True)
for _ in range(8):
    if not ranks.is_main:
        time.sleep(1)  # so that rank 0 is waiting for it when both are stopped
    torch.distributed.all_reduce(torch.ones(1))
print("done", flush=True)
ranks.shut_down()
"""


def test_a_collective_outlives_a_suspension(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "SER_HPC_START": uuid.uuid4().hex}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert any(line == "begins\n" for line in process.stdout), "it never came so far"
    time.sleep(1.5)
    for number, pause_s in ((signal.SIGSTOP, 7), (signal.SIGCONT, 0)):
        for process in processes:
            process.send_signal(number)
        time.sleep(pause_s)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
