"""Decide the state of a trial that is not done: Slurm's state of its job, compared with what its newest attempt has written.

running, starting, ending      a job or a process of it is at work
waiting, requeued, held        queued: for the job's first start; for another start of it; until somebody releases it
suspended                      its job was started, and stands still until Slurm or somebody lets it go on
lost                           it should be running, and gives no sign of life
failed, stopped, not started   nothing of it is queued or running
unknown                        Slurm cannot be asked, and the trial's own files do not tell
"""

from __future__ import annotations

from dataclasses import dataclass

from ser_hpc.launchers.job_state import UNKNOWN, JobState
from ser_hpc.monitor.attempt_status import AttemptStatus
from ser_hpc.monitor.slurm_messages import explain_end, explain_wait, is_held, suspended

RUNNING = ("running", "starting", "ending")
QUEUED = ("waiting", "requeued", "held", "suspended")  # nothing of it runs now, and Slurm will go on with it
STATES = ("done", *RUNNING, *QUEUED, "lost", "failed", "stopped", "not started", "unknown")
_SLURM_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_NO_PROCESS_S = 30.0


@dataclass(frozen=True, slots=True)
class TrialEvidence:
    """What is known of a trial. `submitted`: when its job was, None if nobody wrote that down, and `now`: epoch seconds.

    `newest`: its newest attempt; `lost_after_s`: an attempt that is alive is never silent for so long.
    """

    job: JobState | None
    newest: AttemptStatus | None
    submitted: float | None
    now: float
    lost_after_s: float

    @property
    def is_untried(self) -> bool:
        """True if there is a job, and no attempt of it has begun, nor one without it since it was submitted."""
        if self.job is None or self.newest is None:
            return self.job is not None
        return not self.newest.is_of(self.job) and self.submitted is not None and self.newest.started < self.submitted

    @property
    def is_queued(self) -> bool:
        return self.job is not None and self.job.state in _SLURM_QUEUED


def state_of(known: TrialEvidence) -> tuple[str, str]:
    """Return a state of the list above, and the reason for it."""
    job, newest = known.job, known.newest
    if job is None or not job.is_active:
        if job and (known.is_untried or (newest and newest.is_of(job) and not newest.has_ended)):
            began = not known.is_untried or bool(job.elapsed_s)
            return "stopped" if job.state == "CANCELLED" else "failed", explain_end(job.state, job.exit_code, began=began)
        return _by_itself(newest, known)
    if job.state == UNKNOWN:
        by_itself, reason = _by_itself(newest, known)
        believed = by_itself in ("running", "starting", "failed") and not known.is_untried
        return (by_itself, reason) if believed else ("unknown", "it may be queued")
    if known.is_queued:
        return _queued(job, newest)
    if pause := suspended(job.state, job.job):
        return "suspended", pause
    if job.state == "COMPLETING":
        return "ending", ""
    return _on_nodes(job, newest, known)


def _queued(job: JobState, newest: AttemptStatus | None) -> tuple[str, str]:
    if is_held(job.state, job.reason):
        return "held", f"Slurm holds it ({job.reason}); to let it start: scontrol release {job.job}"
    waits = explain_wait(job.reason)
    if newest is None:
        return ("requeued", f"before an attempt began; waits {waits}") if job.restarts else ("waiting", waits)
    ending = {"stopped": "stopped, its state is saved", "killed": "was killed without a word"}.get(
        newest.end.outcome, newest.end.outcome
    )
    if job.restarts or newest.is_of(job):
        return "requeued", f"{ending}; waits {waits}"
    return "waiting", f"again, after attempt {newest.number} ({ending}), {waits}"


def _on_nodes(job: JobState, newest: AttemptStatus | None, known: TrialEvidence) -> tuple[str, str]:
    """Decide the state of a trial that runs by Slurm's account."""
    elapsed_s = job.elapsed_s or 0.0
    if newest is not None and job.elapsed_s is None and job.restarts is None:  # of another scheduler, which does not tell
        newest = None if newest.has_ended else newest
    elif newest is not None and not newest.is_of_this_start(job, known.submitted, known.now - elapsed_s):
        newest = None
    silent_s = elapsed_s
    if newest is not None:
        # The running time leaves out what the job was suspended for, and nothing could be heard then.
        suspended_s = 0.0 if job.elapsed_s is None else max(0.0, known.now - newest.started - elapsed_s)
        silent_s = known.now - newest.last_sign - suspended_s
    if silent_s > known.lost_after_s:
        return "lost", f"no sign of life for {silent_s / 60:.0f} min, although Slurm says that it runs on {job.nodes}"
    if newest is None:
        return "starting", ""
    return ("ending", "") if newest.has_ended else _at_work(newest)


def _by_itself(newest: AttemptStatus | None, known: TrialEvidence) -> tuple[str, str]:
    """Decide the state from the trial's own files, when there is no job to ask for."""
    if newest is None:
        return "not started", "nothing of it is queued"
    if newest.end.outcome in ("failed", "hung", "lost"):
        return "failed", {"failed": "", "hung": "it hung", "lost": "another of its ranks was lost"}[newest.end.outcome]
    if newest.has_ended:
        return "stopped", "its state is saved; nothing of it is queued"
    silent_s = known.now - newest.last_sign
    if silent_s > known.lost_after_s or (silent_s > _NO_PROCESS_S and newest.process_is_gone):
        return "lost", f"no sign of life for {silent_s / 60:.0f} min" + (
            "; its process is gone" if newest.process_is_gone else ""
        )
    return _at_work(newest)


def _at_work(newest: AttemptStatus) -> tuple[str, str]:
    state = newest.progress.get("state", "starting")
    if state == "encoding":
        made, blocks = newest.progress.get("blocks_made", 0), newest.progress.get("blocks", 0)
        return "running", f"its frozen encoder runs over each clip once: {made} of {blocks} blocks"
    return "starting" if state == "starting" else "running", ""
