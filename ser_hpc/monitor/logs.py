"""Find the logs of an attempt's ranks, and in them the line that names the cause of its end: of the lines closest to a cause,
as monitor/cause_words.py ranks them, the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import count, takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ser_hpc.monitor.cause_words import REFUSED, CauseRank, FailureCause, classify_line, clean_line
from ser_hpc.run.run_dir import RunDir, Trial

_TAIL_BYTES = 256 * 1024
_TRACEBACK = re.compile(r"^(Original )?Traceback \(most recent call last\):")
_CHAINED = re.compile(r"^(The above exception was the direct cause|During handling of the above exception|Original Traceback)")
_RANK = re.compile(r"^\[rank\d+\]:\s?")
_STARTS = re.compile(r"^submitit INFO .*Starting with JobEnvironment")
_CLAIMS = re.compile(r"^seed \d+ fold \d+: attempt \d+ ")
_ENDS = re.compile(r"^ser_hpc: .* is started again$")
_RANKS_PLACE = re.compile(r"%(\d*)[tn]")


def log_files(
    run: RunDir, trial: Trial, attempt: Mapping[str, Any], folders: Mapping[str, str] = MappingProxyType({})
) -> tuple[Path, ...]:
    """Return every rank's log, in rank order, of an attempt as attempt.json describes it, or of a job (`{"job": "123_4"}`).

    `folders`: by an array's id, the folder under RUN/jobs in which each of its elements has a folder of its own, named by its
    index; the logs of all others are in RUN/jobs/trials. Each is asked for by name: to list a folder of thousands takes long.
    """
    job, ranks = attempt.get("job"), attempt.get("ranks")
    if log := attempt.get("log"):

        def path(rank: int) -> Path:
            return Path(_RANKS_PLACE.sub(lambda place: str(rank).zfill(int(place[1] or 0)), log))

        ranks = ranks if _RANKS_PLACE.search(log) else 1
    elif job:
        array, _, element = job.partition("_")
        folder = run.jobs / folders[array] / (element or "0") if array in folders else run.jobs / "trials"

        def path(rank: int) -> Path:
            return folder / f"{job}_{rank}_log.out"
    else:
        here = run.jobs / f"seed_{trial.seed}-fold_{trial.fold}.log"
        return (here,) if here.exists() else ()
    if isinstance(ranks, int):
        return tuple(filter(Path.exists, map(path, range(ranks))))
    return tuple(takewhile(Path.exists, map(path, count())))


def find_cause(logs: Iterable[Path], also: str | None = None) -> FailureCause | None:
    """Return the line closest to the cause, of the newest start in each log. `also`: an error known otherwise, ranked first."""
    lines = [classify_line(also) or FailureCause(clean_line(also), CauseRank.EXCEPTION, True)] if also else []
    for path in logs:
        try:
            status = path.stat()
        except OSError:
            continue
        lines += _causes(path, status.st_size, status.st_mtime_ns)
    return max(lines, key=lambda cause: cause.nearness, default=None)  # the first of the closest


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log; of a progress bar only what it showed last."""
    lines = _tail(path).rstrip("\n").split("\n")
    return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines[-count:]]


@lru_cache(maxsize=4096)
def _causes(path: Path, size: int, changed_ns: int) -> tuple[FailureCause, ...]:
    """Read a log once for each state of the file, which `size` and `changed_ns` tell apart."""
    return tuple(_of_lines(_RANK.sub("", line) for line in _newest_start(_tail(path))))


def _of_lines(lines: Iterable[str]) -> Iterator[FailureCause]:
    """Yield each line that names a cause; of exceptions raised one from another only the last, which was meant to be read."""
    waiting: FailureCause | None = None
    in_traceback = False
    for line in lines:
        if _CHAINED.match(line):
            waiting = None
        if _TRACEBACK.match(line):
            in_traceback = True
        elif line.strip() and not line.startswith((" ", "\t")):
            cause = classify_line(line)
            if cause is None and in_traceback:
                cause = FailureCause(clean_line(line), CauseRank.EXCEPTION, True)
            if cause is not None:
                if waiting:
                    yield waiting
                waiting = cause
            in_traceback = False
    if waiting:
        yield waiting


def _newest_start(text: str) -> list[str]:
    """Return the newest start's lines: a job that is started again appends to its log. Lines from before Python began count
    only where it never did; the start before counts too where the newest only refused to go on."""
    starts: list[list[str]] = [[]]
    began = ""  # how the start of the last list did: "": not yet
    for line in text.splitlines():
        mark = "starts" if _STARTS.match(line) else "claims" if _CLAIMS.match(line) else ""
        if mark:
            if began == "":
                starts[-1] = []
            elif (began, mark) != ("starts", "claims"):  # these two come one after the other
                starts.append([])
            began = mark
        starts[-1].append(line)
        if _ENDS.match(line):
            starts.append([])
            began = ""
    starts = [start for start in starts if any(start)]
    only_refused = any(REFUSED in line for start in starts[-1:] for line in start)
    return [line for start in starts[-2 if only_refused else -1 :] for line in start]


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError as error:
        return f"({path} cannot be read: {error.strerror})"
