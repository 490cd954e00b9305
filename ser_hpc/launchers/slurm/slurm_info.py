"""Query what a site has and allows: each question as a command, and beside it how its answer is read. Nothing here judges.

Formats are those of Slurm 22.05 and later; readers raise ValueError where an answer is not as expected.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ser_hpc.config.cluster import slurm_minutes
from ser_hpc.launchers.slurm import inherited_variables

_ASK_S = 30  # squeue alone takes 18 s to find that the controller is away


@dataclass(frozen=True, slots=True)
class Reply:
    """A command's exit code and output; 127: there is no such command, 124: no answer in time (as shells count)."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def message(self) -> str:
        return " ".join(f"{self.err} {self.out}".split()) or f"exit code {self.code}"


T = TypeVar("T")
QueryRunner = Callable[[Sequence[str], str], Reply]  # (command, standard input) -> its reply


def run_query(command: Sequence[str], stdin: str) -> Reply:
    """Run a command of the site, for 30 s at most; never raises, failures are exit codes.

    A user's own filters and formats (SQUEUE_PARTITION, SACCT_FORMAT ...) would hide jobs or change what is read.
    """
    environment = inherited_variables.strip_slurm_variables(os.environ) | {
        "SLURM_BITSTR_LEN": "0"
    }  # elements of an array are all named
    try:
        done = subprocess.run(
            command, env=environment, input=stdin, capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Reply(124, err=f"{command[0]}: no answer within {_ASK_S} s")
    except OSError as error:
        return Reply(127, err=f"{command[0]}: {error.strerror}")
    return Reply(done.returncode, done.stdout, done.stderr)


class Site:
    """Replies of a site: each question is asked once, and what could not be read becomes a note."""

    def __init__(self, ask: QueryRunner) -> None:
        self.ask = ask
        self.notes: list[str] = []
        self._replies: dict[tuple[str, ...], Reply] = {}

    def query(self, command: Sequence[str], read: Callable[[str], T], what: str) -> T | None:
        """Run `command` and parse its output with `read`; None, and a note that names `what`, where that fails."""
        known = self._replies.get(tuple(command))
        reply = known or self.ask(command, "")
        if reply.code == 0:
            try:
                answer = read(reply.out)
            except (ValueError, IndexError):
                reply = Reply(1, reply.out, "answer not understood:")
            else:
                self._replies[tuple(command)] = reply
                return answer
        self._replies[tuple(command)] = reply
        if known is None:
            self.notes.append(f"{what}: not checked ({reply.message[:300]})")
        return None


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes of a partition that are alike, and the partition's limits (None: no limit)."""

    partition: str
    is_default: bool
    is_up: bool
    max_minutes: int | None
    max_nodes: int | None
    cpus: int
    mem_mb: int
    gpus: dict[str, int]
    """Count by type; the type is empty where the site names none."""
    features: frozenset[str]
    count: int
    is_there: bool
    """Its nodes take jobs, now or when those that run there have ended: not down, drained, reserved or in maintenance."""

    def gpus_of(self, gpu_type: str | None) -> int:
        return self.gpus.get(gpu_type, 0) if gpu_type else sum(self.gpus.values())


# --exact: without it nodes that differ are one line, with their smallest numbers.
NODE_KINDS = ("sinfo", "--exact", "--noheader", "--format=%P|%a|%l|%s|%c|%m|%G|%f|%D|%T")
# Of a node's state: words, then a mark: * no answer, $ reserved for maintenance.
_AWAY = re.compile(r"(down|drain|fail|error|inval|unknown|maint|reserved|blocked|future).*|.*[*$]")


def node_kinds(text: str) -> list[NodeKind]:
    """Parse the answer to `NODE_KINDS`."""
    kinds = []
    for line in text.splitlines():
        name, up, limit, size, cpus, mem_mb, gres, features, count, state = line.split("|")
        most_nodes = size.rpartition("-")[2]
        kinds.append(
            NodeKind(
                partition=name.rstrip("*"),
                is_default=name.endswith("*"),
                is_up=up == "up",
                max_minutes=None if limit == "infinite" else slurm_minutes(limit),
                max_nodes=None if most_nodes == "infinite" else int(most_nodes),
                cpus=int(cpus),
                mem_mb=int(mem_mb),
                gpus=gpus_by_type(gres),
                features=frozenset() if features == "(null)" else frozenset(features.split(",")),
                count=int(count),
                is_there=_AWAY.fullmatch(state) is None,
            )
        )
    return kinds


def gpus_by_type(gres: str) -> dict[str, int]:
    """Parse the GPUs of a node in sinfo's notation: `gpu:h100:2(S:0-1),gpu:a100:4`, `gpu:2`, `(null)`."""
    found = re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)(?=[,(]|$)", gres)
    return {kind: sum(int(count) for other, count in found if other == kind) for kind, _ in found}


@dataclass(frozen=True, slots=True)
class Association:
    """What a user may charge to an account of a cluster. Empty `default_qos`: the site's; empty `partition`: any."""

    cluster: str
    default_account: str
    account: str
    qos: tuple[str, ...]
    default_qos: str
    partition: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of an association or a QOS, None or an empty mapping where it sets none.

    The mappings are by Slurm's names of what it counts.
    """

    max_minutes: int | None
    per_job: dict[str, int]
    per_user: dict[str, int]
    minutes_per_job: dict[str, int]
    max_submitted: int | None
    """Jobs of a user in the queue, running ones too."""


def associations_of(user: str) -> tuple[str, ...]:
    """Return the command that lists what a user may charge jobs to."""
    limits = "MaxWall,MaxTRES,MaxTRESMins,MaxSubmitJobs,GrpSubmitJobs"
    fields = f"format=Cluster,DefaultAccount,Account,QOS,DefaultQOS,Partition,{limits}"
    return ("sacctmgr", "--noheader", "--parsable2", "show", "user", user, "withassoc", fields)


def associations(text: str) -> list[Association]:
    """Parse the answer to `associations_of`."""
    rows = (line.split("|") for line in text.splitlines())
    return [
        Association(
            cluster,
            default,
            account,
            tuple(qos.split(",")) if qos else (),
            default_qos,
            partition,
            Limits(_minutes(wall), _tres(job), {}, _tres(minutes), _least(submit, group_submit)),
        )
        for cluster, default, account, qos, default_qos, partition, wall, job, minutes, submit, group_submit in rows
    ]


def _minutes(text: str) -> int | None:
    return slurm_minutes(text) if text else None


def _least(*numbers: str) -> int | None:
    return min((int(number) for number in numbers if number), default=None)


def limits_of(qos: str) -> tuple[str, ...]:
    """Return the command that shows the limits of a QOS."""
    fields = "format=Name,MaxWall,MaxTRES,MaxTRESPU,MaxTRESMins,MaxSubmitPU"
    return ("sacctmgr", "--noheader", "--parsable2", "show", "qos", qos, fields)


def limits(text: str) -> dict[str, Limits]:
    """Parse the answer to `limits_of`, by name of the QOS."""
    rows = (line.split("|") for line in text.splitlines())
    return {
        name: Limits(_minutes(wall), _tres(job), _tres(user), _tres(minutes), _least(submit))
        for name, wall, job, user, minutes, submit in rows
    }


def _tres(text: str) -> dict[str, int]:
    """Parse `cpu=40,gres/gpu=6,mem=1T`; memory in MB."""
    found = {}
    for part in text.split(",") if text else ():
        name, _, number = part.partition("=")
        unit = "MGTP".find(number[-1:])
        found[name] = int(float(number[:-1]) * 1024**unit) if unit >= 0 else int(number)
    return found


def queue_of(user: str) -> tuple[str, ...]:
    """Return the command that lists every job of a user, array elements one by one, with what each is counted under."""
    return ("squeue", "--all", "--array", "--noheader", f"--user={user}", "--format=%a|%q|%P")


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """What a queued job is counted under. `partition`: several where it has not started, `a,b`."""

    account: str
    qos: str
    partition: str


def queue(text: str) -> list[QueuedJob]:
    """Parse the answer to `queue_of`."""
    lines = (line.strip() for line in text.splitlines())
    return [QueuedJob(*line.split("|")) for line in lines if line and not line.startswith("CLUSTER:")]


def partition(name: str) -> tuple[str, ...]:
    """Return the command that shows a partition's settings."""
    return ("scontrol", "--oneliner", "show", "partition", name)


def partition_qos(text: str) -> str | None:
    """Return the QOS whose limits are those of a partition; None: it has none."""
    found = re.search(r"\bQoS=(\S+)", text)
    return None if found is None or found[1] == "N/A" else found[1]


CONFIG = ("scontrol", "show", "config")


def config(text: str) -> dict[str, str]:
    """Parse the answer to `CONFIG`."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted file system; `free` in bytes, of the whole of it."""

    free: int
    source: str
    kind: str
    mount: str


def file_system_of(path: str) -> tuple[str, ...]:
    """Return the command that shows the file system of a path."""
    return ("df", "--block-size=1", "--output=avail,source,fstype,target", path)


def file_system(text: str) -> FileSystem:
    """Parse the answer to `file_system_of`."""
    free, source, kind, mount = text.splitlines()[-1].split(maxsplit=3)
    return FileSystem(int(free), source, kind, mount)


def quota_of(uid: int, place: FileSystem) -> tuple[str, ...]:
    """Return the command that shows a user's quota on a file system."""
    return ("lfs", "quota", "-q", "-u", str(uid), place.mount) if place.kind == "lustre" else ("quota", "-w", "-p")


def quota_left(text: str, place: FileSystem) -> int | None:
    """Return the bytes that the user may still write to `place`; None without a quota. Counts are in KiB, `*` marks excess."""
    parts = text.split()
    name = place.mount if place.kind == "lustre" else place.source
    if name not in parts:
        return None
    at = parts.index(name)
    used, soft, hard = (int(word.rstrip("*")) for word in parts[at + 1 : at + 4])
    limit = hard or soft
    return max(0, limit - used) * 1024 if limit else None
