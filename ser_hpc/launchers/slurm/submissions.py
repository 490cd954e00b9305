"""Record what Slurm was asked to queue for a run: RUN/jobs/submitted.jsonl, a line for each change.

A submission is noted before it is made, under a name that no other job has, so that whatever becomes of the launcher its jobs
can be looked for; and again when Slurm's answer is known. Written by submit_once.py and by the tasks of slurm/train.sbatch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ser_hpc.core.atomic_io import fsync_path
from ser_hpc.run.run_dir import RunDir, Trial

# In a submission's folder: there, if nothing of it is to run; in an element's, what it runs, as SEED:FOLD ...
VOID, TRIALS = "void", "trials"
Outcome = Literal["asked", "queued", "void"]
_NEW_NAMES = {"when": "submitted_at"}  # of a line's keys, by what an earlier version called them


@dataclass(frozen=True, slots=True)
class Submission:
    """One `sbatch`. Element K of its array runs the trials `elements[K]`; a report's has none.

    `name`: of its jobs, unique where `mark` is given, which is also the name of its folder in RUN/jobs. `job`: Slurm's number.
    `outcome`: `asked` until Slurm's answer is known; `void` where it queued nothing, or nothing of it is to run.
    `submitted_at`: epoch seconds; `user`: uid; `code`: digest of what its jobs run; `settings`: of `cluster`, as submitted.
    """

    kind: Literal["trials", "report"]
    name: str
    submitted_at: float
    elements: Mapping[int, tuple[Trial, ...]] = field(default_factory=dict)
    mark: str | None = None
    job: str | None = None
    outcome: Outcome = "queued"
    user: int = field(default_factory=os.getuid)
    cluster: str | None = None
    host: str | None = None
    code: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """An identifier, unique within the run."""
        return self.mark or str(self.job)

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial for trials in self.elements.values() for trial in trials)


def record_submission(run: RunDir, submission: Submission) -> None:
    """Append a submission, whole and synced, after whatever a kill has left of an earlier line."""
    line = asdict(submission) | {
        "elements": {number: [[t.seed, t.fold] for t in trials] for number, trials in submission.elements.items()}
    }
    run.jobs.mkdir(parents=True, exist_ok=True)
    with run.submitted.open("ab+") as file:
        cut_off = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut_off = file.read() != b"\n"
        file.write(b"\n" * cut_off + json.dumps(line).encode() + b"\n")
    fsync_path(run.submitted)
    fsync_path(run.jobs)


def read_submissions(run: RunDir) -> tuple[Submission, ...]:
    """Read the submissions, oldest first; a later line of one replaces the earlier, a line cut off by a kill is passed over."""
    try:
        lines = run.submitted.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    found: dict[str, Submission] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            entry = {_NEW_NAMES.get(name, name): value for name, value in json.loads(line).items()}
            for submission in _of_before(run, entry) if "array" in entry else [_parse(entry)]:
                found[submission.key] = submission
    return tuple(found.values())


def _parse(entry: dict[str, Any]) -> Submission:
    known = {name: entry[name] for name in (given.name for given in fields(Submission)) if name in entry}
    return Submission(**known | {"elements": _elements(entry["elements"].items())})


def _of_before(run: RunDir, entry: dict[str, Any]) -> Iterator[Submission]:
    """Read an earlier version's line: an array and its report, under names that each submission of the run shared."""
    name, submitted_at = run.path.resolve().name, entry["submitted_at"]
    elements = _elements(enumerate(entry["elements"]))
    yield Submission("trials", f"ser-{name}", submitted_at, elements, job=entry["array"], code=entry.get("code"))
    if entry["report"] is not None:
        yield Submission("report", f"report-{name}", submitted_at, job=entry["report"])


def _elements(items: Any) -> dict[int, tuple[Trial, ...]]:
    return {int(number): tuple(Trial(seed, fold) for seed, fold in trials) for number, trials in items}
