"""The logs of an attempt's ranks, and the one line in them that says why it ended.

When one rank fails, its fellows fail too, for want of it, and louder: connection errors, NCCL's watchdog, srun's account of who
was killed. So lines are ranked by how close they are to a cause, and of lines that are equally close the first one counts:

    RESOURCE    memory, disk and files' limits; a mistake that we told in words ourselves
    EXCEPTION   the last line of a traceback, a crash
    SCHEDULER   time limit, preemption, a lost node
    FELLOW      a connection that was closed, a collective that timed out
    AFTERMATH   what Slurm says of tasks that it ended
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from ser_hpc.results.run_dir import RunDir, Trial

_TAIL_BYTES = 256 * 1024
_LONGEST = 400


class Nearness(IntEnum):
    """How close a line is to the cause."""

    AFTERMATH = 1
    FELLOW = 2
    SCHEDULER = 3
    EXCEPTION = 4
    RESOURCE = 5


@dataclass(frozen=True, slots=True)
class Cause:
    """A line of a log. `blames_node`: another node might do better."""

    line: str
    nearness: Nearness
    blames_node: bool


_REFUSED = r"it is not tried again"  # what an attempt says that finds itself in a crash loop: the cause was told before
# Tried from above; a line has the nearness of the first pattern that it matches.
_PATTERNS = tuple(
    (nearness, blames_node, re.compile(pattern))
    for nearness, blames_node, pattern in (
        (Nearness.AFTERMATH, True, _REFUSED),
        (Nearness.SCHEDULER, False, r"CANCELLED AT .* DUE TO (TIME LIMIT|PREEMPTION)"),
        (Nearness.SCHEDULER, True, r"DUE TO NODE FAILURE|Node failure on "),
        (Nearness.RESOURCE, False, r"oom[-_ ]?kill|\bOut Of Memory\b"),
        (Nearness.RESOURCE, False, r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|^MemoryError"),
        (Nearness.RESOURCE, False, r"No space left on device|Disk quota exceeded|Too many open files"),
        (Nearness.RESOURCE, False, r"^error: |^([\w.]+\.)?(UserError|ConfigError): "),
        (Nearness.FELLOW, True, r"[Cc]onnection (was )?(reset|closed|refused|aborted)|Broken pipe|EOFError|recvBytes|pair\.cc"),
        (Nearness.FELLOW, True, r"Socket Timeout|Application timeout|TCPStore|DistNetworkError|DistStoreError|wait timeout"),
        (Nearness.FELLOW, True, r"DistBackendError|NCCL (WARN|error|communicator)|ncclRemoteError|ProcessGroupNCCL.*terminat"),
        (Nearness.FELLOW, True, r"[Cc]ollective operation timeout|tak(e|ing) the entire process down|terminate called"),
        (Nearness.FELLOW, True, r"is killed by signal: Terminated|ChildFailedError"),
        (Nearness.AFTERMATH, False, r"^KeyboardInterrupt|^SystemExit"),
        (Nearness.EXCEPTION, True, r"Fatal Python error|Segmentation fault|Bus error|Illegal instruction"),
        (Nearness.EXCEPTION, True, r"^([A-Za-z_]\w*\.)*[A-Z]\w*(Error|Exception|Expired)(: |$)"),
        (Nearness.EXCEPTION, True, r": command not found|execve\(\)"),
        (Nearness.EXCEPTION, False, r"^(srun|sbatch): fatal: "),
        (Nearness.AFTERMATH, True, r"slurmstepd: error: |srun: error: |^Killed|^Terminated"),
    )
)
_TRACEBACK = re.compile(r"^(Original )?Traceback \(most recent call last\):")
_CHAINED = re.compile(r"^(The above exception was the direct cause|During handling of the above exception|Original Traceback)")
_RANK = re.compile(r"^\[rank\d+\]:\s?")
_BEGIN = re.compile(r"^submitit INFO .*Starting with JobEnvironment|^seed \d+ fold \d+: attempt \d+ ")
_OURS = re.compile(r"^(error|([\w.]+\.)?(UserError|ConfigError)): ")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def log_files(run: RunDir, trial: Trial, attempt: Mapping[str, Any]) -> tuple[Path, ...]:
    """Every rank's log, in rank order, of an attempt as attempt.json describes it."""
    if attempt.get("log"):
        log = Path(re.sub(r"%t|%n", "*", attempt["log"]))
        found = log.parent.glob(log.name)
    elif attempt.get("job"):
        found = (run.jobs / "trials").glob(f"{attempt['job']}_*_log.*")
    else:
        found = run.jobs.glob(f"seed_{trial.seed}-fold_{trial.fold}.log")
    return tuple(
        sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])
    )


def find_cause(logs: Iterable[Path], also: str | None = None) -> Cause | None:
    """The line that is closest to the cause, of the newest start in each log. `also`: an error told elsewhere, heard first."""
    lines = [_judge(also) or Cause(_clean(also), Nearness.EXCEPTION, True)] if also else []
    for path in logs:
        try:
            status = path.stat()
        except OSError:
            continue
        lines += _causes(path, status.st_size, status.st_mtime_ns)
    return max(lines, key=lambda cause: cause.nearness, default=None)  # the first of the closest


def last_lines(path: Path, count: int) -> list[str]:
    """The end of a log; of a progress bar only what it showed last."""
    lines = _tail(path).rstrip("\n").split("\n")
    return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines[-count:]]


@lru_cache(maxsize=4096)
def _causes(path: Path, size: int, changed_ns: int) -> tuple[Cause, ...]:
    """Read once for each state of the file, which `size` and `changed_ns` tell apart."""
    return tuple(_of_lines(_RANK.sub("", line) for line in _newest_start(_tail(path))))


def _of_lines(lines: Iterable[str]) -> Iterator[Cause]:
    """Each line that tells something; of exceptions raised one from another only the last, which was meant to be read."""
    waiting: Cause | None = None
    in_traceback = False
    for line in lines:
        if _CHAINED.match(line):
            waiting = None
        if _TRACEBACK.match(line):
            in_traceback = True
        elif line.strip() and not line.startswith((" ", "\t")):
            cause = _judge(line)
            if cause is None and in_traceback:
                cause = Cause(_clean(line), Nearness.EXCEPTION, True)
            if cause is not None:
                if waiting:
                    yield waiting
                waiting = cause
            in_traceback = False
    if waiting:
        yield waiting


def _judge(line: str) -> Cause | None:
    line = _clean(line)
    for nearness, blames_node, pattern in _PATTERNS:
        if pattern.search(line):
            return Cause(_OURS.sub("", line), nearness, blames_node)
    return None


def _clean(line: str) -> str:
    line = _ESCAPE.sub("", line).strip()
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."


def _newest_start(text: str) -> list[str]:
    """A job that was requeued appends to its log; the start before counts too where the newest only refused to go on."""
    lines = text.splitlines()
    begins = [number for number, line in enumerate(lines) if _BEGIN.match(line)] or [0]
    newest = lines[begins[-1] :]
    return lines[begins[max(-2, -len(begins))] :] if any(_REFUSED in line for line in newest) else newest


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError as error:
        return f"({path} cannot be read: {error.strerror})"
