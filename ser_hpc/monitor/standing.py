"""Where each trial stands: what Slurm says of its job, held against what its attempts have written down.

done                           its marker is there
running, starting, ending      a job or a process of it is at work
waiting, requeued, held        queued: for the first time; again, after an attempt; until somebody releases it
lost                           it should be running, and gives no sign of life
failed, stopped, not started   nothing of it is queued or running
unknown                        Slurm cannot be asked, and the trial's own files do not tell
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ser_hpc.cluster import starts
from ser_hpc.cluster.slurm_queue import UNKNOWN, JobState
from ser_hpc.files import read_json
from ser_hpc.monitor.logs import Cause, Nearness, find_cause, log_files
from ser_hpc.monitor.slurm_words import ended, is_held, waits_for
from ser_hpc.results.endings import End, how_it_ended
from ser_hpc.results.run_dir import AttemptDir, RunDir, Trial, TrialDir

RUNNING = ("running", "starting", "ending")
QUEUED = ("waiting", "requeued", "held")
_SLURM_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_CLOCKS_DIFFER_S = 60.0
_NO_PROCESS_S = 30.0
_HANG_MINUTES = 30.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt as it has written itself down. `last_sign`: when it last wrote, in epoch seconds."""

    number: int
    told: Mapping[str, Any]
    progress: Mapping[str, Any]
    end: End
    last_sign: float

    @property
    def started(self) -> float:
        return float(self.told.get("started") or 0.0)

    @property
    def has_ended(self) -> bool:
        return self.end.how != "killed"

    @property
    def nodes(self) -> str:
        """As Slurm writes them: `n[1-2]`."""
        nodes = self.told.get("nodes") or self.told.get("host") or ""
        return nodes if isinstance(nodes, str) else ",".join(nodes)

    @property
    def is_here(self) -> bool:
        """Without Slurm, on this machine."""
        return self.told.get("job") is None and self.told.get("host") == socket.gethostname()

    @property
    def process_is_gone(self) -> bool:
        return self.is_here and not Path(f"/proc/{self.told.get('pid')}").exists()

    @property
    def who_to_stop(self) -> tuple[str, int]:
        """Host and process id: the launcher, which stops every trial, where it can be seen; else the trial's own process."""
        process = int(self.told["pid"])
        if self.is_here:
            with suppress(OSError, ValueError):
                parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
                command = Path(f"/proc/{parent}/cmdline").read_bytes()
                if b"ser_hpc.launch" in command or b"ser_hpc.status" in command:  # the latter after --retry
                    return str(self.told["host"]), parent
        return str(self.told["host"]), process


@dataclass(frozen=True, slots=True)
class Standing:
    """One trial. `number` counts the run's trials from 1; `why` says in words what `state` does not.

    `progress`: the newest that its attempts know, as in progress.json. `left_s`: seconds until it is trained, where known;
    `took_s`: seconds that a trial which is done took.
    """

    number: int
    trial: Trial
    state: str
    why: str = ""
    job: JobState | None = None
    attempts: tuple[Attempt, ...] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)
    left_s: float | None = None
    took_s: float | None = None
    error: Cause | None = None
    logs: tuple[Path, ...] = ()

    @property
    def nodes(self) -> str:
        if self.job is not None and self.job.nodes and self.state in RUNNING:
            return self.job.nodes
        return self.attempts[-1].nodes if self.attempts else ""

    @property
    def restarts(self) -> int:
        """Slurm also counts starts that did not come to an attempt."""
        return max(0, len(self.attempts) - 1, (self.job and self.job.restarts) or 0)

    @property
    def is_open(self) -> bool:
        """Not done, and nothing is queued or running that would complete it."""
        return not self.has_job and self.state in ("failed", "stopped", "not started", "lost")

    @property
    def has_job(self) -> bool:
        """Queued or running by Slurm."""
        return self.job is not None and self.job.is_active

    @property
    def runs_without_slurm(self) -> bool:
        return self.state in RUNNING and not self.has_job


def look(run: RunDir, jobs: Mapping[Trial, JobState], now: float) -> tuple[Standing, ...]:
    """Every trial of the plan, in its order. `now`: epoch seconds. Raises UserError if this is no run directory."""
    lost_after_s = _lost_after(run)
    standings = [
        _look(run, run.trial(trial), number, jobs.get(trial), now, lost_after_s)
        for number, trial in enumerate(run.trials(), start=1)
    ]
    if any(standing.runs_without_slurm for standing in standings):
        standings = [
            replace(standing, state="waiting", why="for the trials that run here")
            if standing.state == "not started"
            else standing
            for standing in standings
        ]
    return tuple(standings)


def failed_nodes(run: RunDir, standings: Iterable[Standing]) -> tuple[str, ...]:
    """Where these trials failed, as Slurm writes nodes; without those that are not to blame: a mistake fails everywhere."""
    found: set[str] = set()
    for standing in standings:
        unreached = starts.unreached(run, standing.job.job) if standing.job is not None else set()
        if standing.attempts or len(unreached) == 1:  # what cannot be started on any node is no node's fault
            found |= unreached
        if (
            standing.state in ("failed", "lost")
            and standing.attempts
            and standing.attempts[-1].told.get("job") is not None
            and (standing.error is None or standing.error.blames_node)
        ):
            found.add(standing.nodes)
    return tuple(sorted(found))


def _look(run: RunDir, place: TrialDir, number: int, job: JobState | None, now: float, lost_after_s: float) -> Standing:
    attempts = tuple(_read(attempt) for attempt in place.attempts if attempt.number <= place.current.number)
    newest = attempts[-1] if attempts else None
    state, why = ("done", "") if place.is_done else _state(job, newest, now, lost_after_s)
    given_up = starts.given_up(run, job.job) if job is not None and state in ("failed", "stopped") else None
    state, why = (state, why) if given_up is None else ("failed", given_up)
    # What a new attempt does not know yet is what the one before it knew.
    progress = {key: value for attempt in attempts for key, value in attempt.progress.items() if value is not None}
    logs = log_files(run, place.trial, newest.told if newest else {"job": job and job.job})
    standing = Standing(number, place.trial, state, why, job, attempts, progress, logs=logs)
    if state == "done":
        return replace(standing, took_s=_json(place.done).get("seconds"))
    left_s = newest.progress.get("seconds_left") if newest else None
    if newest and state == "running" and left_s is not None:
        return replace(standing, left_s=max(0.0, left_s - (now - newest.last_sign)))
    if state in ("failed", "lost") or (newest and state == "requeued" and newest.end.how != "stopped"):
        cause = find_cause(logs, newest.end.error if newest else None)
        if given_up is not None and cause is not None and cause.nearness == Nearness.AFTERMATH:
            cause = None  # the batch script's own words say more
        return replace(standing, error=cause)
    return standing


def _state(job: JobState | None, newest: Attempt | None, now: float, lost_after_s: float) -> tuple[str, str]:
    """A state of the list above, and why."""
    if job is not None and not job.is_active:
        of_it = newest is None or str(newest.told.get("job")).split("_")[0] == job.array
        if of_it and (newest is None or not newest.has_ended):
            return "stopped" if job.state == "CANCELLED" else "failed", ended(job.state, job.exit_code)
    if job is None or not job.is_active:
        return _by_itself(newest, now, lost_after_s)
    if job.state == UNKNOWN:
        state, why = _by_itself(newest, now, lost_after_s)
        return (state, why) if state in ("running", "starting", "failed") else ("unknown", "it may be queued")
    if job.state in _SLURM_QUEUED:
        return _queued(job, newest)
    if job.state == "COMPLETING":
        return "ending", ""
    return _on_nodes(job, newest, now, lost_after_s)


def _queued(job: JobState, newest: Attempt | None) -> tuple[str, str]:
    if is_held(job.state, job.reason):
        return "held", f"Slurm holds it ({job.reason}); to let it start: scontrol release {job.job}"
    if newest is None:
        return "waiting", waits_for(job.reason)
    before = {"stopped": "stopped, its state is saved", "killed": "was killed without a word"}
    return "requeued", f"{before.get(newest.end.how, newest.end.how)}; waits {waits_for(job.reason)}"


def _on_nodes(job: JobState, newest: Attempt | None, now: float, lost_after_s: float) -> tuple[str, str]:
    """Slurm says that it runs."""
    began = now - (job.elapsed_s or 0.0)
    at_work = newest is not None and newest.started > began - _CLOCKS_DIFFER_S
    silent_s = now - (newest.last_sign if newest is not None and at_work else began)
    if silent_s > lost_after_s:
        return "lost", f"no sign of life for {silent_s / 60:.0f} min, although Slurm says that it runs on {job.nodes}"
    if newest is None or not at_work:
        return "starting", ""
    if newest.has_ended:
        return "ending", ""
    return ("starting" if newest.progress.get("state", "starting") == "starting" else "running"), ""


def _by_itself(newest: Attempt | None, now: float, lost_after_s: float) -> tuple[str, str]:
    """From its own files, when there is no job to ask for."""
    if newest is None:
        return "not started", "nothing of it is queued"
    if newest.end.how in ("failed", "hung", "lost"):
        return "failed", {"failed": "", "hung": "it hung", "lost": "another of its ranks was lost"}[newest.end.how]
    if newest.has_ended:
        return "stopped", "its state is saved; nothing of it is queued"
    silent_s = now - newest.last_sign
    if silent_s > lost_after_s or (silent_s > _NO_PROCESS_S and newest.process_is_gone):
        return "lost", f"no sign of life for {silent_s / 60:.0f} min" + (
            "; its process is gone" if newest.process_is_gone else ""
        )
    return ("starting" if newest.progress.get("state", "starting") == "starting" else "running"), ""


def _read(attempt: AttemptDir) -> Attempt:
    told, progress = _json(attempt.attempt), _json(attempt.progress)
    last_sign = max(float(told.get("started") or 0.0), float(progress.get("updated") or 0.0))
    return Attempt(attempt.number, told, progress, how_it_ended(attempt), last_sign)


def _json(path: Path) -> dict[str, Any]:
    """What a file says; nothing, where it is not there or was cut off by a kill."""
    with suppress(OSError, ValueError):
        value = read_json(path)
        if isinstance(value, dict):
            return value
    return {}


def _lost_after(run: RunDir) -> float:
    """Seconds of silence after which a trial would have ended itself, had it been able to."""
    minutes = _HANG_MINUTES
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        minutes = float(yaml.safe_load(run.settings.read_text(encoding="utf-8"))["train"]["hang_minutes"])
    return minutes * 60 * 1.2
