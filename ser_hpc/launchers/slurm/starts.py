"""Read the record that batch scripts keep of a job's starts (written by requeue_script.py): not all came to an attempt.

A line of RUN/jobs/.starts-JOB: when (epoch seconds), where, exit code, outcome, reason. The outcome: `further`, `stuck` (our
code ran, and came no further than a start before it), `absent` (our code was not reached), `given-up`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ser_hpc.run.run_dir import RunDir

_LINE = re.compile(r"(\d+) (\S+) (\d+) (further|stuck|absent|given-up) ?(.*)")


@dataclass(frozen=True, slots=True)
class JobStart:
    """One start of a job. `ended`: when, in epoch seconds; `node`: of its batch script."""

    ended: int
    node: str
    exit_code: int
    outcome: str
    reason: str


def read_starts(run: RunDir, job: str) -> tuple[JobStart, ...]:
    """Read a job's starts ("123_4", or "123"), oldest first, after which its script asked for another, or gave up."""
    found: list[JobStart] = []
    for path in sorted((*run.jobs.glob(f".starts-{job}"), *run.jobs.glob(f"*/.starts-{job}"))):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            continue
        matches = (_LINE.fullmatch(line) for line in lines)
        found += [JobStart(int(m[1]), m[2], int(m[3]), m[4], m[5]) for m in matches if m]
    return tuple(found)


def given_up_reason(run: RunDir, job: str) -> str | None:
    """Return why the job is tried no more; None where it was not given up."""
    found = read_starts(run, job)
    return found[-1].reason.strip(" :") if found and found[-1].outcome == "given-up" else None


def unreached_nodes(run: RunDir, job: str) -> set[str]:
    """Return the nodes on which the job's starts did not even reach our code."""
    return {start.node for start in read_starts(run, job) if start.outcome == "absent" and start.node != "?"}
