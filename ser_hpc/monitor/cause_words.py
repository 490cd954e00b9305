"""What a line of a log tells of the reason why a job ended, from the line alone.

When one rank fails, its fellows fail too, for want of it, and louder: connection errors, NCCL's watchdog, srun's account of who
was killed. So lines are ranked by how close they are to a cause:

    RESOURCE    memory, disk, files' limits; a node's driver or mount; a mistake that we told in words ourselves
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


class Nearness(IntEnum):
    """How close a line is to the cause."""

    AFTERMATH = 1
    FELLOW = 2
    SCHEDULER = 3
    LAUNCH = 4
    EXCEPTION = 5
    RESOURCE = 6


@dataclass(frozen=True, slots=True)
class Cause:
    """A line of a log. `blames_node`: another node might do better."""

    line: str
    nearness: Nearness
    blames_node: bool


REFUSED = r"it is not tried again"  # what an attempt says that finds itself in a crash loop: the cause was told before
_SHELL = r"^\S+: line \d+: |^\S*(sh|slurm_script): \d+: "  # bash; dash
_NO_FILE = r"(No such file or directory|Permission denied|Not a directory|Exec format error|Read-only file system)$"
# Tried from above; a line has the nearness of the first pattern that it matches.
_PATTERNS = tuple(
    (nearness, blames_node, re.compile(pattern))
    for nearness, blames_node, pattern in (
        (Nearness.AFTERMATH, True, REFUSED),
        (Nearness.SCHEDULER, False, r"CANCELLED AT .* DUE TO (TIME LIMIT|PREEMPTION)"),
        (Nearness.SCHEDULER, True, r"DUE TO NODE FAILURE|Node failure on "),
        (Nearness.RESOURCE, False, r"oom[-_ ]?kill|\bOut Of Memory\b"),
        (Nearness.RESOURCE, False, r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|^MemoryError"),
        (Nearness.RESOURCE, False, r"\bCU[A-Z]+(_STATUS)?_ALLOC_FAILED|[Cc]annot allocate memory|std::bad_alloc"),
        (Nearness.RESOURCE, False, r"No space left on device|Disk quota exceeded|Too many open files"),
        (Nearness.RESOURCE, True, r"Stale (NFS )?file handle|Input/output error|[Tt]ransport endpoint"),
        (Nearness.RESOURCE, True, r"CUDA driver version is insufficient|no kernel image is available|uncorrectable ECC"),
        (Nearness.RESOURCE, True, r"Driver/library version mismatch|GPU is lost|fallen off the bus|No CUDA GPUs are available"),
        (Nearness.RESOURCE, False, r"^error: |^([\w.]+\.)?(UserError|ConfigError): "),
        (Nearness.EXCEPTION, True, r"(pyxis|enroot[\w-]*): +\[ERROR\]|^\[ERROR\] "),  # the log of what pyxis says only failed
        (Nearness.AFTERMATH, True, r"pyxis: (child |printing |printing enroot| +\[(INFO|WARN)|couldn't start container)"),
        (Nearness.LAUNCH, True, r"error: (pyxis: |spank: )|^nvidia-container-cli: |^FATAL: |^ch-run\[\d+\]: error"),
        (Nearness.LAUNCH, True, r"execve\(\)|couldn't chdir to|Could not open std(out|err) file"),
        (
            Nearness.LAUNCH,
            True,
            r"^(?!\w+Error: ).*(error while loading shared libraries|version `\S+' not found \(required by )",
        ),
        (Nearness.LAUNCH, False, r"^srun: fatal: |^sbatch: (error|fatal): |^srun: error: .*mutually exclusive"),
        (Nearness.LAUNCH, False, r"^srun: error: .*([Ii]nvalid|Unable to (create|allocate|confirm)|[Uu]nrecognized)"),
        (Nearness.LAUNCH, True, r"^srun: error: .*([Tt]ask|Application) launch .*failed"),
        (Nearness.FELLOW, True, r"[Cc]onnection (was )?(reset|closed|refused|aborted)|Broken pipe|EOFError|recvBytes|pair\.cc"),
        (Nearness.FELLOW, True, r"Socket Timeout|Application timeout|TCPStore|DistNetworkError|DistStoreError|wait timeout"),
        (Nearness.FELLOW, True, r"DistBackendError|NCCL (WARN|error|communicator)|ncclRemoteError|ProcessGroupNCCL.*terminat"),
        (Nearness.FELLOW, True, r"[Cc]ollective operation timeout|tak(e|ing) the entire process down|terminate called"),
        (Nearness.FELLOW, True, r"is killed by signal: Terminated|ChildFailedError"),
        (Nearness.AFTERMATH, False, r"^KeyboardInterrupt|^SystemExit"),
        (Nearness.EXCEPTION, True, r"Fatal Python error|Segmentation fault|Bus error|Illegal instruction"),
        (Nearness.AFTERMATH, True, r": line \d+: +\d+ \w"),  # bash, of a process of its own that was killed
        (
            Nearness.LAUNCH,
            False,
            rf"({_SHELL})([Ss]yntax error|unexpected EOF|.*(unbound variable|conditional binary operator))",
        ),
        (Nearness.LAUNCH, True, rf"{_SHELL}|: command not found|^Lmod has detected the following error|modulefile for '"),
        (Nearness.LAUNCH, True, r"^Environment(Name|Location)NotFound|^\S*python[\d.]*: (can't open|No module|Error while)"),
        (Nearness.EXCEPTION, True, r"^([A-Za-z_]\w*\.)*[A-Z]\w*(Error|Exception|Expired)(: |$)"),
        (Nearness.LAUNCH, True, rf"^[\w./-]+: .*{_NO_FILE}"),
        (Nearness.AFTERMATH, True, r"slurmstepd: error: |srun: error: |^Killed|^Terminated"),
    )
)
_NUMBERS = re.compile(r"\d+")
_OURS = re.compile(r"^(error|([\w.]+\.)?(UserError|ConfigError)): ")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def judge(line: str) -> Cause | None:
    """None: it tells of no reason."""
    line = clean(line)
    kind = _kind(_NUMBERS.sub("0", line))
    return kind and Cause(_OURS.sub("", line), *kind)


@lru_cache(maxsize=1 << 15)
def _kind(line: str) -> tuple[Nearness, bool] | None:
    """Of a line without its numbers: most lines of a thousand trials' logs differ in nothing else, and are looked at once."""
    return next(((nearness, blames) for nearness, blames, pattern in _PATTERNS if pattern.search(line)), None)


def clean(line: str) -> str:
    """For a terminal: without colours and other control characters, and not longer than a few of its lines."""
    line = _ESCAPE.sub("", line).strip()
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " ..."
