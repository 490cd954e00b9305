"""Explain Slurm's states and reasons in plain words."""

from __future__ import annotations

import re

_WAITS_FOR = (
    (r"Priority", "jobs of higher priority"),
    (r"Resources", "free nodes"),
    (r"BeginTime", "its begin time, which Slurm sets a little ahead when it requeues"),
    (r"Cleaning", "its earlier start to be cleaned up"),
    (r"JobArrayTaskLimit", "others of its array, as cluster.max_parallel_trials asks"),
    (r"QOSGrp.*|QOSUsageThreshold", "other jobs of its QOS, which is used up"),
    (r"QOS.*", "other jobs of yours: its QOS limits what you may use at a time"),
    (r"Assoc.*", "other jobs of your account, whose use is limited"),
    (r"ReqNodeNotAvail.*|NodeDown.*|Reservation.*", "nodes that are down or reserved"),
    (r"Dependency.*", "other jobs"),
    (r"PartitionTimeLimit", "ever: its time limit is over the partition's"),
    (r"Partition.*", "its partition, which is closed or too small for it"),
    (r"BadConstraints|InvalidAccount|InvalidQOS|AccountNotAllowed|QOSNotAllowed", "ever: Slurm cannot grant what it asks for"),
    (r"WaitingForScheduling|", "Slurm to look at it"),
)
_ENDED = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "its job was cancelled",
    "COMPLETED": "its job ended without completing the trial",
    "DEADLINE": "its job's deadline came",
    "FORGOTTEN": "its job has left the queue without a word of it",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "it used more memory than its job had",
    "PREEMPTED": "its job was preempted and not queued again",
    "TIMEOUT": "its job's time limit came before it had stopped by itself",
}

_EXIT_CODES = {
    "126:0": "a command of its script may not be executed there",
    "127:0": "a command of its script was not found there",
}
_SIGNALS = {
    4: "illegal instruction: the node's CPU lacks what a program was built for",
    6: "a program gave up, SIGABRT",
    7: "bus error: often no room in /dev/shm, or a file that was cut off under it",
    9: "killed, SIGKILL: often for its memory",
    11: "segmentation fault",
    15: "ended by SIGTERM",
    53: "Slurm could not open its log there: the folder is not to be seen from that node, or its disk is full",  # Slurm's own
}


def explain_wait(reason: str) -> str:
    """Explain squeue's reason for a job that is pending: `for free nodes (Resources)`."""
    meaning = next((meaning for pattern, meaning in _WAITS_FOR if re.fullmatch(pattern, reason)), "what Slurm calls")
    return f"for {meaning}" + (f" ({reason})" if reason else "")


def is_held(state: str, reason: str) -> bool:
    """Return whether Slurm will not start it before somebody releases it."""
    return state in ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD") or "held" in reason.lower()


def suspended(state: str, job: str) -> str | None:
    """Explain why a job that has its nodes stands still, and what lets it go on; None if it does not."""
    return {
        "SUSPENDED": f"by Slurm for another job, or because somebody asked: then scontrol resume {job} lets it go on",
        "STOPPED": f"its processes were stopped (SIGSTOP); to let them go on: scancel --signal=CONT {job}",
    }.get(state)


def explain_end(state: str, exit_code: str | None, *, began: bool = True) -> str:
    """Explain what the end of a job means for its trial. `began`: an attempt of it had begun."""
    if state == "CANCELLED" and not began:
        return "cancelled before it began"
    return _ENDED.get(state) or f"its job ended as {state}" + (f" with exit code {_explained(exit_code)}" if exit_code else "")


def _explained(exit_code: str) -> str:
    """Explain Slurm's `code:signal`; a shell reports a signal as 128 and more."""
    code, _, number = exit_code.partition(":")
    if not (code.isdecimal() and number.isdecimal()):
        return exit_code
    killed_by = int(number) or max(0, int(code) - 128)
    meaning = _EXIT_CODES.get(exit_code) or _SIGNALS.get(killed_by)
    return f"{exit_code} ({meaning})" if meaning else exit_code
