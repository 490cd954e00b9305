"""The state of a job that runs trials, in Slurm's words, whoever tells it.

A job is named as Slurm names it: "123_4" is element 4 of array 123, and "123" a job that is no array. Launchers of other
schedulers give their own names, and translate the state.
"""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "UNKNOWN"  # ours: it may be queued or running, but Slurm cannot be asked
FORGOTTEN = "FORGOTTEN"  # ours: squeue knows it no more and sacct cannot tell
# A state that is not one of these, even one of a later Slurm, may still come to something: it counts as active.
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"}
ENDED |= {"REVOKED", FORGOTTEN}


@dataclass(frozen=True, slots=True)
class JobState:
    """The state of a job. `user`: a uid; `state`: Slurm's name (PENDING, RUNNING, COMPLETED, FAILED ...), or ours;
    `exit_code`: such as "1:0", code and signal.

    `elapsed_s`, and `left_s` until its time limit, are seconds, None where unknown. `command`: the script and its arguments, as
    they were submitted in `folder`.
    """

    job: str
    user: str = ""
    name: str = ""
    state: str = UNKNOWN
    reason: str = ""
    nodes: str = ""
    elapsed_s: float | None = None
    left_s: float | None = None
    restarts: int | None = None
    exit_code: str | None = None
    command: str = ""
    folder: str = ""

    @property
    def is_active(self) -> bool:
        """True if it is queued, running, or on its way back to the queue."""
        return self.state not in ENDED

    @property
    def array(self) -> str:
        return self.job.split("_")[0]

    @property
    def element(self) -> int:
        """The job's index in its array; 0 if it is no array."""
        return int(self.job.partition("_")[2] or 0)
