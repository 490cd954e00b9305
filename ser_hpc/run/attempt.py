"""Record one attempt (a start of a trial), for `ser_hpc.train`: who runs it and with what, and how it ended.

A trial that fails is started again, from its newest checkpoint: nodes are lost and memory errors pass. Whoever starts it (the
batch script, the launcher on this machine) counts the starts that came no further than those before them, and gives up.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.core.versions import versions
from ser_hpc.run.rank import Rank, submission_id
from ser_hpc.run.run_dir import AttemptDir, TrialDir

# ser_hpc.train's exit codes, by which launchers go. 75 is EX_TEMPFAIL; 2 is also a UserError's (ser_hpc.core.cli).
FAILED, CANNOT_GO_ON, SUPERSEDED, STOPPED = 1, 2, 3, 75


def claim_attempt(trial: TrialDir, rank: Rank) -> AttemptDir:
    """Take the next number and write attempt.json, on rank 0 alone. Raises UserError if the run cannot be written."""
    try:
        attempt = trial.claim()
        write_json(attempt.attempt, _description(attempt, rank, os.environ))
    except OSError as error:
        raise UserError(f"{trial.path} cannot be written: {error.strerror or error}") from error
    print(f"{trial.trial}: attempt {attempt.number} begins on {socket.gethostname()}", flush=True)
    return attempt


def describe_attempt(attempt: AttemptDir, **more: Any) -> None:
    """Add what became known later to attempt.json."""
    write_json(attempt.attempt, read_json(attempt.attempt) | more)


def end_attempt(attempt: AttemptDir, outcome: str, error: str | None = None, *, shared: bool = False) -> None:
    """Write end.json. "lost" is a consequence: a rank that knows the cause is given a second to write it first.

    `error`: a message for people; `shared`: every other trial of the run would end in that error too.
    """
    if outcome == "lost":
        time.sleep(1.0)
        if attempt.end.exists():
            return
    with suppress(OSError):  # the disk may be full, which is then the error itself
        record = {"outcome": outcome, "error": error, "shared": shared, "host": socket.gethostname(), "ended": time.time()}
        write_json(attempt.end, record)


def _description(attempt: AttemptDir, rank: Rank, env: Mapping[str, str]) -> dict[str, Any]:
    # What a launcher runs on this machine, be it within an allocation, is no job to be found in the queue.
    job = submission_id(env) if "SLURM_JOB_ID" in env and "SER_HPC_LAUNCH" not in env else None
    return {
        "number": attempt.number,
        "submission": submission_id(env),
        "job": job,
        "job_name": env.get("SLURM_JOB_NAME") if job else None,
        "user": os.getuid(),
        "cluster": env.get("SLURM_CLUSTER_NAME") if job else None,
        "restart": int(env.get("SLURM_RESTART_COUNT", 0)) if job else None,
        "nodes": env.get("SLURM_JOB_NODELIST", socket.gethostname()),
        "ranks": rank.size,
        "host": env.get("SLURMD_NODENAME", socket.gethostname()),
        "pid": os.getpid(),
        "code": env.get("SER_HPC_CODE"),
        "log": env.get("SER_HPC_LOG"),
        "started": time.time(),
        "versions": versions(),
    }
