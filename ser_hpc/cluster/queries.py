"""What a site says of itself: each question as a command, and beside it how its answer is read. Nothing here judges.

Formats are those of Slurm 22.05 and later; readers raise ValueError where an answer is not as expected.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ser_hpc.config.cluster import slurm_minutes

_ASK_S = 30  # squeue alone takes 18 s to find that the controller is away
# A user's own filters and formats (SQUEUE_PARTITION, SACCT_FORMAT ...) would hide jobs or change what is read.
_PRIVATE = ("SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SLURM_TIME_FORMAT")


@dataclass(frozen=True, slots=True)
class Reply:
    """How a command ended and what it said; 127: there is no such command, 124: no answer in time (as shells count)."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def words(self) -> str:
        return " ".join(f"{self.err} {self.out}".split()) or f"exit code {self.code}"


Ask = Callable[[Sequence[str], str], Reply]  # (command, standard input) -> its reply


def ask(command: Sequence[str], stdin: str) -> Reply:
    """Run a command of the site, for 30 s at most."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    environment["SLURM_BITSTR_LEN"] = "0"  # elements of an array are all named, however many
    try:
        done = subprocess.run(
            command, env=environment, input=stdin, capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Reply(124, err=f"{command[0]}: no answer within {_ASK_S} s")
    except OSError as error:
        return Reply(127, err=f"{command[0]}: {error.strerror}")
    return Reply(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes of a partition that are alike, and the partition's limits (none: no limit)."""

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

    def gpus_of(self, gpu_type: str | None) -> int:
        return self.gpus.get(gpu_type, 0) if gpu_type else sum(self.gpus.values())


# --exact: without it nodes that differ are one line, with their smallest numbers.
NODE_KINDS = ("sinfo", "--exact", "--noheader", "--format=%P|%a|%l|%s|%c|%m|%G|%f|%D")


def node_kinds(text: str) -> list[NodeKind]:
    kinds = []
    for line in text.splitlines():
        name, up, limit, size, cpus, mem_mb, gres, features, count = line.split("|")
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
            )
        )
    return kinds


def gpus_by_type(gres: str) -> dict[str, int]:
    """GPUs of a node in sinfo's words: `gpu:h100:2(S:0-1),gpu:a100:4`, `gpu:2`, `(null)`."""
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


def associations_of(user: str) -> tuple[str, ...]:
    fields = "format=Cluster,DefaultAccount,Account,QOS,DefaultQOS,Partition"
    return ("sacctmgr", "--noheader", "--parsable2", "show", "user", user, "withassoc", fields)


def associations(text: str) -> list[Association]:
    rows = (line.split("|") for line in text.splitlines())
    return [
        Association(cluster, default, account, tuple(qos.split(",")) if qos else (), default_qos, partition)
        for cluster, default, account, qos, default_qos, partition in rows
    ]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a QOS, none or an empty mapping where it sets no limit. The mappings are by Slurm's names of what it counts."""

    max_minutes: int | None
    per_job: dict[str, int]
    per_user: dict[str, int]
    minutes_per_job: dict[str, int]
    max_submitted: int | None


def limits_of(qos: str) -> tuple[str, ...]:
    fields = "format=Name,MaxWall,MaxTRES,MaxTRESPU,MaxTRESMins,MaxSubmitPU"
    return ("sacctmgr", "--noheader", "--parsable2", "show", "qos", qos, fields)


def limits(text: str) -> dict[str, Limits]:
    """By name of the QOS."""
    rows = (line.split("|") for line in text.splitlines())
    return {
        name: Limits(
            slurm_minutes(wall) if wall else None, _tres(job), _tres(user), _tres(minutes), int(submit) if submit else None
        )
        for name, wall, job, user, minutes, submit in rows
    }


def _tres(text: str) -> dict[str, int]:
    """`cpu=40,gres/gpu=6,mem=1T`; memory in MB."""
    found = {}
    for part in text.split(",") if text else ():
        name, _, number = part.partition("=")
        unit = "MGTP".find(number[-1:])
        found[name] = int(float(number[:-1]) * 1024**unit) if unit >= 0 else int(number)
    return found


CONFIG = ("scontrol", "show", "config")


def config(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


@dataclass(frozen=True, slots=True)
class FileSystem:
    """`free` in bytes, of the whole file system."""

    free: int
    source: str
    kind: str
    mount: str


def file_system_of(path: str) -> tuple[str, ...]:
    return ("df", "--block-size=1", "--output=avail,source,fstype,target", path)


def file_system(text: str) -> FileSystem:
    free, source, kind, mount = text.splitlines()[-1].split(maxsplit=3)
    return FileSystem(int(free), source, kind, mount)


def quota_of(uid: int, place: FileSystem) -> tuple[str, ...]:
    return ("lfs", "quota", "-q", "-u", str(uid), place.mount) if place.kind == "lustre" else ("quota", "-w", "-p")


def quota_left(text: str, place: FileSystem) -> int | None:
    """Bytes that the user may still write to `place`; none: no quota there. Counts are in KiB, `*` marks an exceeded one."""
    words = text.split()
    name = place.mount if place.kind == "lustre" else place.source
    if name not in words:
        return None
    at = words.index(name)
    used, soft, hard = (int(word.rstrip("*")) for word in words[at + 1 : at + 4])
    limit = hard or soft
    return max(0, limit - used) * 1024 if limit else None
