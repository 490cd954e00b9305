"""What Slurm says of jobs: squeue of those in the queue, sacct of those that have left it.

A job is named as Slurm names it: "123_4" is element 4 of array 123, and "123" a job that is no array.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from ser_hpc.cluster.queries import ask

_SEPARATOR = "\x1f"  # names, reasons and node lists hold commas, blanks and bars
_SQUEUE_FIELDS = (
    "JobArrayID",
    "UserID",
    "Name",
    "State",
    "Reason",
    "NodeList",
    "TimeUsed",
    "TimeLeft",
    "RestartCnt",
    "exit_code",
)
_SACCT_FIELDS = ("JobID", "UID", "JobName", "State", "NodeList", "Elapsed", "ExitCode")
UNKNOWN = "UNKNOWN"  # ours: it may be queued or running, but Slurm cannot be asked
FORGOTTEN = "FORGOTTEN"  # ours: squeue knows it no more and sacct cannot tell
# A state that is not one of these, even one of a later Slurm, may still come to something: it counts as active.
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"}
_ENDED |= {"REVOKED", FORGOTTEN}


@dataclass(frozen=True, slots=True)
class JobState:
    """`user`: a uid; `state`: in Slurm's words, or ours; `exit_code`: such as "1:0", code and signal.

    `elapsed_s`, and `left_s` until its time limit, are seconds, None where unknown.
    """

    job: str
    user: str
    name: str
    state: str
    reason: str = ""
    nodes: str = ""
    elapsed_s: float | None = None
    left_s: float | None = None
    restarts: int | None = None
    exit_code: str | None = None

    @property
    def is_active(self) -> bool:
        """Queued, running, or on its way back to the queue."""
        return self.state not in _ENDED

    @property
    def array(self) -> str:
        return self.job.split("_")[0]


class SlurmError(Exception):
    """A command of Slurm is missing, took too long or refused; its words."""


def ask_slurm(*command: str) -> str:
    """What a command of Slurm prints. Raises SlurmError."""
    reply = ask(command, "")
    if reply.code == 127:
        raise SlurmError(f"there is no {command[0]} on this machine")
    if reply.code:
        said = (reply.err.strip() or reply.out.strip()).splitlines()
        raise SlurmError(said[-1] if said else f"{command[0]} ended with exit code {reply.code}")
    return reply.out


def squeue(jobs: Iterable[str]) -> list[JobState]:
    """What the queue knows of `jobs`, each array element by itself; those that ended a few minutes ago are still in it."""
    fields = ",".join(f"{field}:{_SEPARATOR}" for field in _SQUEUE_FIELDS)
    command = ("squeue", "--all", "--array", "--states=all", "--noheader")
    try:
        lines = ask_slurm(*command, f"--jobs={_arrays(jobs)}", f"--Format={fields}")
    except SlurmError as error:
        if "Invalid job id" in str(error):  # asked for one job alone, which has left the queue
            return []
        raise
    states = []
    for job, user, name, state, reason, nodes, used, left, restarts, status in _rows(lines, len(_SQUEUE_FIELDS)):
        exit_code = f"{int(status) >> 8}:{int(status) & 127}" if state in _ENDED else None
        reason, nodes = _present(reason), _present(nodes)
        states.append(JobState(job, user, name, state, reason, nodes, _seconds(used), _seconds(left), int(restarts), exit_code))
    return states


def sacct(jobs: Collection[str]) -> list[JobState]:
    """What accounting remembers of `jobs`, the newest start of each.

    Elements that never started are one row, `123_[4-9%2]` or, of an array that was never split up, `123`.
    """
    command = ("sacct", "--noheader", "--parsable2", f"--delimiter={_SEPARATOR}", "--allocations")
    lines = ask_slurm(*command, f"--jobs={_arrays(jobs)}", f"--format={','.join(_SACCT_FIELDS)}")
    told: dict[str, JobState] = {}
    for job, user, name, state, nodes, elapsed, exit_code in _rows(lines, len(_SACCT_FIELDS)):
        word = state.partition(" ")[0]  # of "CANCELLED by 1000"
        key = job if job in jobs else job.split("_")[0]
        told[key] = JobState(job, user, name, word, "", _present(nodes), _seconds(elapsed), exit_code=exit_code)
    found = {job: told.get(job) or told.get(job.split("_")[0]) for job in jobs}
    return [replace(state, job=job) for job, state in found.items() if state is not None]


def _arrays(jobs: Iterable[str]) -> str:
    return ",".join(sorted({job.split("_")[0] for job in jobs}))


def _rows(text: str, fields: int) -> Iterator[list[str]]:
    """Lines that are rows: with several clusters Slurm also prints their names."""
    rows = (line.removesuffix(_SEPARATOR).split(_SEPARATOR) for line in text.splitlines())
    return ([field.strip() for field in row] for row in rows if len(row) == fields)


def _present(field: str) -> str:
    return "" if field in ("None", "None assigned", "N/A", "(null)", "Unknown") else field


def _seconds(text: str) -> float | None:
    """Of Slurm's `1-02:03:04`, `02:03:04` or `03:04`; None for UNLIMITED, INVALID, NOT_SET and the like."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
        return float(int(days or 0) * 86400 + seconds)
    except ValueError:
        return None
