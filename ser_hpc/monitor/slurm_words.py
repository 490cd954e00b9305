"""What Slurm's states and reasons mean, in plain words."""

from __future__ import annotations

import re

_WAITS_FOR = (
    (r"Priority", "jobs of higher priority"),
    (r"Resources", "free nodes"),
    (r"BeginTime|Cleaning", "Slurm's pause after a requeue"),
    (r"JobArrayTaskLimit", "others of its array, as cluster.parallel asks"),
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


def waits_for(reason: str) -> str:
    """Of squeue's reason for a job that is pending: `for free nodes (Resources)`."""
    words = next((words for pattern, words in _WAITS_FOR if re.fullmatch(pattern, reason)), "what Slurm calls")
    return f"for {words}" + (f" ({reason})" if reason else "")


def is_held(state: str, reason: str) -> bool:
    """Whether Slurm will not start it before somebody releases it."""
    return state in ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD") or "held" in reason.lower()


def ended(state: str, exit_code: str | None) -> str:
    """Of a job that has ended: what that means for its trial."""
    return _ENDED.get(state) or f"its job ended as {state}" + (f" with exit code {exit_code}" if exit_code else "")
