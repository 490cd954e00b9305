"""Classify a line of a log by how close it is to the reason why a job ended, from the line alone.

When one rank fails, its fellows fail too, for want of it, and louder: connection errors, NCCL's watchdog, srun's account of who
was killed. So lines are ranked by how close they are to a cause:

    RESOURCE    memory, disk, files' limits; a node's driver or mount; a mistake that our own message explains
    EXCEPTION   the last line of a traceback, a crash
    LAUNCH      what was to start Python: a shell, srun, a container's runtime, the dynamic linker
    SCHEDULER   time limit, preemption, a lost node
    FELLOW      a connection that was closed, a collective that timed out
    AFTERMATH   what Slurm says of tasks that it ended
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

_LONGEST = 400


class CauseRank(IntEnum):
    """How close a line is to the cause."""

    AFTERMATH = 1
    FELLOW = 2
    SCHEDULER = 3
    LAUNCH = 4
    EXCEPTION = 5
    RESOURCE = 6


@dataclass(frozen=True, slots=True)
class FailureCause:
    """A line of a log that names a cause. `blames_node`: another node might do better."""

    line: str
    nearness: CauseRank
    blames_node: bool


REFUSED = r"it is not tried again"  # what an attempt says that finds itself in a crash loop: the cause was told before
_SHELL = r"^\S+: line \d+: |^\S*(sh|slurm_script): \d+: "  # bash; dash
_NO_FILE = r"(No such file or directory|Permission denied|Not a directory|Exec format error|Read-only file system)$"
# Tried from above; a line has the nearness of the first pattern that it matches.
_PATTERNS = tuple(
    (nearness, blames_node, re.compile(pattern))
    for nearness, blames_node, pattern in (
        (CauseRank.AFTERMATH, True, REFUSED),
        (CauseRank.SCHEDULER, False, r"CANCELLED AT .* DUE TO (TIME LIMIT|PREEMPTION)"),
        (CauseRank.SCHEDULER, True, r"DUE TO NODE FAILURE|Node failure on "),
        (CauseRank.RESOURCE, False, r"oom[-_ ]?kill|\bOut Of Memory\b"),
        (CauseRank.RESOURCE, False, r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|^MemoryError"),
        (CauseRank.RESOURCE, False, r"\bCU[A-Z]+(_STATUS)?_ALLOC_FAILED|[Cc]annot allocate memory|std::bad_alloc"),
        (CauseRank.RESOURCE, False, r"No space left on device|Disk quota exceeded|Too many open files"),
        (CauseRank.RESOURCE, True, r"Stale (NFS )?file handle|Input/output error|[Tt]ransport endpoint"),
        (CauseRank.RESOURCE, True, r"CUDA driver version is insufficient|no kernel image is available|uncorrectable ECC"),
        (
            CauseRank.RESOURCE,
            True,
            r"Driver/library version mismatch|GPU is lost|fallen off the bus|No CUDA GPUs are available",
        ),
        (CauseRank.RESOURCE, False, r"^error: |^([\w.]+\.)?(UserError|ConfigError): "),
        (CauseRank.EXCEPTION, True, r"(pyxis|enroot[\w-]*): +\[ERROR\]|^\[ERROR\] "),  # the log of what pyxis says only failed
        (CauseRank.AFTERMATH, True, r"pyxis: (child |printing |printing enroot| +\[(INFO|WARN)|couldn't start container)"),
        (CauseRank.LAUNCH, True, r"error: (pyxis: |spank: )|^nvidia-container-cli: |^FATAL: |^ch-run\[\d+\]: error"),
        (CauseRank.LAUNCH, True, r"execve\(\)|couldn't chdir to|Could not open std(out|err) file"),
        (
            CauseRank.LAUNCH,
            True,
            r"^(?!\w+Error: ).*(error while loading shared libraries|version `\S+' not found \(required by )",
        ),
        (CauseRank.LAUNCH, False, r"^srun: fatal: |^sbatch: (error|fatal): |^srun: error: .*mutually exclusive"),
        (CauseRank.LAUNCH, False, r"^srun: error: .*([Ii]nvalid|Unable to (create|allocate|confirm)|[Uu]nrecognized)"),
        (CauseRank.LAUNCH, True, r"^srun: error: .*([Tt]ask|Application) launch .*failed"),
        (
            CauseRank.FELLOW,
            True,
            r"[Cc]onnection (was )?(reset|closed|refused|aborted)|Broken pipe|EOFError|recvBytes|pair\.cc",
        ),
        (CauseRank.FELLOW, True, r"Socket Timeout|Application timeout|TCPStore|DistNetworkError|DistStoreError|wait timeout"),
        (CauseRank.FELLOW, True, r"DistBackendError|NCCL (WARN|error|communicator)|ncclRemoteError|ProcessGroupNCCL.*terminat"),
        (CauseRank.FELLOW, True, r"[Cc]ollective operation timeout|tak(e|ing) the entire process down|terminate called"),
        (CauseRank.FELLOW, True, r"is killed by signal: Terminated|ChildFailedError"),
        (CauseRank.AFTERMATH, False, r"^KeyboardInterrupt|^SystemExit"),
        (CauseRank.EXCEPTION, True, r"Fatal Python error|Segmentation fault|Bus error|Illegal instruction"),
        (CauseRank.AFTERMATH, True, r": line \d+: +\d+ \w"),  # bash, of a process of its own that was killed
        (
            CauseRank.LAUNCH,
            False,
            rf"({_SHELL})([Ss]yntax error|unexpected EOF|.*(unbound variable|conditional binary operator))",
        ),
        (CauseRank.LAUNCH, True, rf"{_SHELL}|: command not found|^Lmod has detected the following error|modulefile for '"),
        (CauseRank.LAUNCH, True, r"^Environment(Name|Location)NotFound|^\S*python[\d.]*: (can't open|No module|Error while)"),
        (CauseRank.EXCEPTION, True, r"^([A-Za-z_]\w*\.)*[A-Z]\w*(Error|Exception|Expired)(: |$)"),
        (CauseRank.LAUNCH, True, rf"^[\w./-]+: .*{_NO_FILE}"),
        (CauseRank.AFTERMATH, True, r"slurmstepd: error: |srun: error: |^Killed|^Terminated"),
    )
)
_NUMBERS = re.compile(r"\d+")
_OURS = re.compile(r"^(error|([\w.]+\.)?(UserError|ConfigError)): ")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def classify_line(line: str) -> FailureCause | None:
    """Return the cause that the line names; None if it names none."""
    line = clean_line(line)
    kind = _kind(_NUMBERS.sub("0", line))
    return kind and FailureCause(_OURS.sub("", line), *kind)


@lru_cache(maxsize=1 << 15)
def _kind(line: str) -> tuple[CauseRank, bool] | None:
    """Classify a line without its numbers, once: most lines of a thousand trials' logs differ in nothing else."""
    return next(((nearness, blames) for nearness, blames, pattern in _PATTERNS if pattern.search(line)), None)


def clean_line(line: str) -> str:
    """Make a line fit for a terminal: no colours and other control characters, no longer than a few of its lines."""
    line = _ESCAPE.sub("", line).strip()
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."
