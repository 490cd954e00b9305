"""Read an attempt of a trial from its own files, and tell which job and start it belongs to."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import read_json
from ser_hpc.launchers.job_state import JobState
from ser_hpc.run.attempt_end import AttemptEnd, read_end
from ser_hpc.run.run_dir import AttemptDir

_CLOCKS_DIFFER_S = 60.0


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """An attempt as its files describe it. `description`: its attempt.json; `last_sign`: its last write, in epoch seconds."""

    number: int
    description: Mapping[str, Any]
    progress: Mapping[str, Any]
    end: AttemptEnd
    last_sign: float

    @property
    def started(self) -> float:
        return float(self.description.get("started") or 0.0)

    @property
    def has_ended(self) -> bool:
        return self.end.outcome != "killed"

    @property
    def nodes(self) -> str:
        """The attempt's nodes as Slurm writes them: `n[1-2]`."""
        nodes = self.description.get("nodes") or self.description.get("host") or ""
        return nodes if isinstance(nodes, str) else ",".join(nodes)

    def is_of(self, job: JobState) -> bool:
        """Return whether it is of this job, maybe of an earlier start. A job "123" may also go by "123_0", its only element."""
        return str(self.description.get("job")).removesuffix("_0") == job.job.removesuffix("_0")

    def is_of_this_start(self, job: JobState, submitted: float | None, began: float) -> bool:
        """Return whether it is of a running job's present start. `began`: by its running time, too late if ever suspended.

        Trials that share a job do not know its name. Epoch seconds; `submitted`: None where nobody wrote it down.
        """
        if self.is_of(job):
            restart = self.description.get("restart")
            if isinstance(restart, int) and job.restarts is not None:
                return restart == job.restarts or job.restarts == 0
            since = 0.0 if job.restarts == 0 else began
        elif self.description.get("job") is not None:
            return False
        else:
            since = submitted if job.restarts == 0 and submitted is not None else began
        return self.started > since - _CLOCKS_DIFFER_S

    @property
    def is_here(self) -> bool:
        """True if it runs, or ran, without Slurm on this machine."""
        return self.description.get("job") is None and self.description.get("host") == socket.gethostname()

    @property
    def process_is_gone(self) -> bool:
        return self.is_here and not Path(f"/proc/{self.description.get('pid')}").exists()

    @property
    def process_to_stop(self) -> tuple[str, int]:
        """Host and process id: the launcher, which stops every trial, where it can be seen; else the trial's own process."""
        process = int(self.description["pid"])
        if self.is_here:
            with suppress(OSError, ValueError):
                parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
                command = Path(f"/proc/{parent}/cmdline").read_bytes()
                if b"ser_hpc.launch" in command or b"ser_hpc.status" in command:  # the latter after --retry
                    return str(self.description["host"]), parent
        return str(self.description["host"]), process


def read_attempt(attempt: AttemptDir) -> AttemptStatus:
    """Read an attempt; what is missing or cut off of its files counts as empty."""
    description, progress = read_if_whole(attempt.attempt), read_if_whole(attempt.progress)
    last_sign = max(float(description.get("started") or 0.0), float(progress.get("updated") or 0.0))
    return AttemptStatus(attempt.number, description, progress, read_end(attempt), last_sign)


def read_if_whole(path: Path) -> dict[str, Any]:
    """Read a JSON file; empty where it is not there or was cut off by a kill."""
    with suppress(OSError, ValueError):
        value = read_json(path)
        if isinstance(value, dict):
            return value
    return {}
