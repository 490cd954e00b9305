"""The life of one start of a trial: who runs it and with what, how it ended, and whether yet another start makes sense.

A trial that fails is started again, from its newest checkpoint: nodes are lost and memory errors pass. What fails twice at the
same step will fail for ever, and is refused, so that it does not eat the queue.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import takewhile
from typing import Any

from ser_hpc.engine.rank import Rank, submission
from ser_hpc.errors import UserError
from ser_hpc.files import read_json, write_json
from ser_hpc.results.endings import NOT_AGAIN, End, how_it_ended
from ser_hpc.results.run_dir import AttemptDir, TrialDir
from ser_hpc.versions import versions

# ser_hpc.train's exit codes, by which launchers go. 75 is EX_TEMPFAIL; 2 is also a UserError's (ser_hpc.console).
FAILED, CANNOT_GO_ON, SUPERSEDED, STOPPED = 1, 2, 3, 75
LAST_WORD = "SER_HPC_FINAL"  # names the file for a trial's last word to the batch script
_FAILURES = ("failed", "hung", "lost", "killed")


def claim(trial: TrialDir, rank: Rank) -> AttemptDir:
    """Take a number and write down who we are. Rank 0 only. Raises UserError if the run cannot be written."""
    try:
        attempt = trial.claim()
        write_json(attempt.attempt, _description(attempt, rank, os.environ))
    except OSError as error:
        raise UserError(f"{trial.path} cannot be written: {error.strerror or error}") from error
    print(f"{trial.trial}: attempt {attempt.number} begins on {socket.gethostname()}", flush=True)
    return attempt


def add(attempt: AttemptDir, **more: Any) -> None:
    """Add what became known later to the attempt's description."""
    write_json(attempt.attempt, read_json(attempt.attempt) | more)


def end(attempt: AttemptDir, how: str, error: str | None = None, *, shared: bool = False) -> None:
    """Write down how it ended. A fellow's death is a consequence: whoever knows the cause is given a moment to say it.

    `shared`: every other trial of the run would end in that error too.
    """
    if how == "lost":
        time.sleep(1.0)
        if attempt.end.exists():
            return
    with suppress(OSError):  # the disk may be full, which is then the error itself
        told = {"how": how, "error": error, "shared": shared, "host": socket.gethostname(), "when": time.time()}
        write_json(attempt.end, told)


def refuse_crash_loop(trial: TrialDir, attempt: AttemptDir) -> None:
    """Raises UserError. Only restarts of one submission count: a person who submits again wants it tried."""
    ours = _submission(attempt)
    if ours is None:
        return
    before = [other for other in reversed(trial.attempts) if other.number < attempt.number]
    ends = [how_it_ended(other) for other in takewhile(lambda other: _submission(other) == ours, before)]
    ends = [end for end in ends if not end.is_refusal]
    bad = list(takewhile(lambda end: end.how in _FAILURES and end.step == ends[0].step, ends))
    if not bad or len(bad) < max(_limit(end) for end in bad):
        return
    where = f"at step {bad[0].step}" if bad[0].step is not None else "before training began"
    why = next((end.error for end in bad if end.error), "killed without a word: out of memory? see its log")
    raise UserError(f"{trial.trial} failed {len(bad)} times in a row {where}; {NOT_AGAIN}. The reason: {why}")


def _limit(end: End) -> int:
    """So many in a row at one step are a crash loop. A kill without a word may be a preemption, most of all while it starts."""
    if end.how in ("failed", "hung"):
        return 2
    return 3 if end.trained else 10


def _submission(attempt: AttemptDir) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        found: str | None = read_json(attempt.attempt)["submission"]
        return found
    return None


def _description(attempt: AttemptDir, rank: Rank, env: Mapping[str, str]) -> dict[str, Any]:
    # What a launcher runs on this machine, be it within an allocation, is no job to be found in the queue.
    job = submission(env) if "SLURM_JOB_ID" in env and "SER_HPC_LAUNCH" not in env else None
    return {
        "number": attempt.number,
        "submission": submission(env),
        "job": job,
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
