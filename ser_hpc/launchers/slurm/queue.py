"""Read the state of jobs from Slurm: squeue for those in the queue, sacct for those that have left it.

Numbers of jobs are given anew after a reset, and by every cluster: callers compare user and name of the answer with those they
expect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ser_hpc.launchers.job_state import ENDED, JobState
from ser_hpc.launchers.slurm import slurm_info
from ser_hpc.launchers.slurm.slurm_info import run_query

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
    "Command",
    "WorkDir",
)
_SACCT_FIELDS = ("JobID", "UID", "JobName", "State", "NodeList", "Elapsed", "ExitCode")


class SlurmError(Exception):
    """A command of Slurm is missing, took too long or refused; the message is Slurm's."""


def run_slurm(*command: str) -> str:
    """Run a command of Slurm and return what it prints. Raises SlurmError."""
    reply = run_query(command, "")
    if reply.code == 127:
        raise SlurmError(f"there is no {command[0]} on this machine")
    if reply.code:
        message = (reply.err.strip() or reply.out.strip()).splitlines()
        raise SlurmError(message[-1] if message else f"{command[0]} ended with exit code {reply.code}")
    return reply.out


def cluster_name() -> str | None:
    """Return the cluster whose Slurm answers here; None where it does not say."""
    try:
        return slurm_info.config(run_slurm(*slurm_info.CONFIG)).get("ClusterName")
    except SlurmError:
        return None


def squeue(users: Collection[int]) -> list[JobState]:
    """Return every job of these users in the queue, array elements one by one; also what ended lately. Raises SlurmError."""
    fields = ",".join(f"{field}:{_SEPARATOR}" for field in _SQUEUE_FIELDS)
    whose = ",".join(map(str, sorted(users)))
    command = ("squeue", "--all", "--array", "--states=all", "--noheader")
    lines = run_slurm(*command, f"--user={whose}", f"--Format={fields}")
    states = []
    for job, user, name, state, reason, nodes, used, left, restarts, status, script, folder in _rows(
        lines, len(_SQUEUE_FIELDS)
    ):
        exit_code = f"{int(status) >> 8}:{int(status) & 127}" if state in ENDED else None
        states.append(
            JobState(
                *(job, user, name, state, _present(reason), _present(nodes), _seconds(used), _seconds(left), int(restarts)),
                *(exit_code, _present(script), _present(folder)),
            )
        )
    return states


def sacct(jobs: Collection[str]) -> list[JobState]:
    """Return what accounting remembers of `jobs`, the newest start of each. Raises SlurmError.

    Elements that never started are one row, `123_[4-9%2]` or, of an array that was never split up, `123`. A row speaks for the
    elements that it names; of one that was cancelled while it waited there may be none.
    """
    command = ("sacct", "--noheader", "--parsable2", f"--delimiter={_SEPARATOR}", "--allocations")
    arrays = ",".join(sorted({job.split("_")[0] for job in jobs}))
    lines = run_slurm(*command, f"--jobs={arrays}", f"--format={','.join(_SACCT_FIELDS)}")
    rows = list(_rows(lines, len(_SACCT_FIELDS)))
    split_up = {row[0].split("_")[0] for row in rows if "_" in row[0]}
    found: dict[str, JobState] = {}
    for name, user, job_name, state, nodes, elapsed, exit_code in rows:
        word = state.partition(" ")[0]  # of "CANCELLED by 1000"
        for job in _named(name, jobs, whole=name not in split_up):
            found[job] = JobState(job, user, job_name, word, "", _present(nodes), _seconds(elapsed), exit_code=exit_code)
    return list(found.values())


def _named(row: str, jobs: Collection[str], *, whole: bool) -> list[str]:
    """Select the jobs that a row of sacct names: `123_4`, `123_[0-2,7%4]`, `123`; `whole`: this one stands for its array."""
    array, _, elements = row.partition("_")
    if not elements.startswith("["):
        return [job for job in jobs if job == row or (whole and not elements and job.split("_")[0] == array)]
    numbers: set[int] = set()
    for part in elements.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition(":")[0].partition("-")
        step = int(part.partition(":")[2] or 1)
        if first.isdigit():
            numbers.update(range(int(first), int(last or first) + 1, step))
    return [
        job
        for job in jobs
        if job.split("_")[0] == array and job.partition("_")[2].isdigit() and int(job.partition("_")[2]) in numbers
    ]


def _rows(text: str, fields: int) -> Iterator[list[str]]:
    """Return the lines that are rows: with several clusters Slurm also prints their names."""
    rows = (line.removesuffix(_SEPARATOR).split(_SEPARATOR) for line in text.splitlines())
    return ([field.strip() for field in row] for row in rows if len(row) == fields)


def _present(field: str) -> str:
    return "" if field in ("None", "None assigned", "N/A", "(null)", "Unknown") else field


def _seconds(text: str) -> float | None:
    """Parse Slurm's `1-02:03:04`, `02:03:04` or `03:04`; None for UNLIMITED, INVALID, NOT_SET and the like."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
        return float(int(days or 0) * 86400 + seconds)
    except ValueError:
        return None
