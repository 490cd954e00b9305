"""Before anything is queued: would this site take the jobs, and would they ever start?

Slurm takes many a job that can never start (over a partition's time limit, over a QOS's GPUs) and refuses others in few words.
So the site is asked what it has and what this user may do (queries.py), and last whether it would take the very scripts
(`sbatch --test-only`). What a command does not say is not checked, and that is noted.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ser_hpc.cluster import queries
from ser_hpc.cluster.queries import Ask, Limits, NodeKind
from ser_hpc.cluster.slurm import REPORT_MEM_GB, REPORT_MIN, gpus_per_node, partition
from ser_hpc.config.cluster import ClusterSettings, expanded
from ser_hpc.errors import UserError, listed

T = TypeVar("T")
START_UP_S = 30  # until a trial's first step, at the least: Python, torch, shards, the ranks' meeting


def check(
    cluster: ClusterSettings,
    num_jobs: int,
    run_root: Path,
    disk_bytes: float,
    scripts: Sequence[tuple[str, str]],
    ask: Ask = queries.ask,
) -> list[str]:
    """Notes worth reading; raises UserError with everything that is in the way of `num_jobs` trials' jobs and their report.

    `disk_bytes`: what the run may come to need below `run_root`; `scripts`: name and text of the batch scripts (slurm.scripts).
    """
    site = _Site(ask)
    trial = _trial_job(cluster)
    kinds = site.query(queries.NODE_KINDS, queries.node_kinds, "partitions and nodes")
    config = site.query(queries.CONFIG, queries.config, "the size of arrays") or {}
    problems = [*_too_short(cluster, trial, kinds or ())]
    if kinds:
        problems += _nodes(site, trial, kinds)
        problems += _nodes(site, _report_job(cluster), kinds) if cluster.report_partition else ()
    problems += _rights(site, cluster, trial, num_jobs, config)
    most = int(config.get("MaxArraySize", num_jobs))
    if num_jobs > most:
        problems.append(
            f"{_counted(num_jobs, 'job')}: an array holds {most} here (MaxArraySize); launch fewer seeds now, add seeds later"
        )
    problems += _disk(site, cluster, run_root, disk_bytes)
    for name, text in scripts:
        problems += _test(site, name, text)
    if problems:
        raise UserError("\n  ".join(["the jobs would not run at this site, so nothing was submitted:", *problems]))
    return site.notes


def check_packing(cluster: ClusterSettings, num_jobs: int, script: str, ask: Ask = queries.ask) -> list[str]:
    """As `check`, for `num_jobs` jobs that pack: is there such a partition, with such nodes, for that long?"""
    site = _Site(ask)
    kinds = site.query(queries.NODE_KINDS, queries.node_kinds, "partitions and nodes")
    problems = [*_nodes(site, _trial_job(cluster), kinds)] if kinds else []
    config = site.query(queries.CONFIG, queries.config, "the size of arrays") or {}
    most = int(config.get("MaxArraySize", num_jobs))
    if num_jobs > most:
        problems.append(f"--jobs {num_jobs}: an array holds {most} here (MaxArraySize)")
    problems += _test(site, "packing", script)
    if problems:
        raise UserError("\n  ".join(["the jobs would not run at this site, so nothing was submitted:", *problems]))
    return site.notes


class _Site:
    """Asks, and keeps notes of what was not to be had."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.notes: list[str] = []

    def query(self, command: Sequence[str], read: Callable[[str], T], what: str) -> T | None:
        reply = self.ask(command, "")
        if reply.code == 0:
            try:
                return read(reply.out)
            except (ValueError, IndexError):
                reply = queries.Reply(1, reply.out, "answer not understood:")
        self.notes.append(f"{what}: not checked ({reply.words[:300]})")
        return None


@dataclass(frozen=True, slots=True)
class _Job:
    """What one job asks for; `gpus`, `cpus` and `mem_mb` are per node. `setting` names what chose its partition."""

    setting: str
    partition: str | None
    nodes: int
    gpus: int
    gpu_type: str | None
    cpus: int
    mem_mb: int
    minutes: int
    constraint: str | None

    @property
    def counted(self) -> dict[str, int]:
        """The job in Slurm's names of what it counts and limits."""
        gpus = self.nodes * self.gpus
        typed = {f"gres/gpu:{self.gpu_type}": gpus} if self.gpu_type else {}
        return {"node": self.nodes, "cpu": self.nodes * self.cpus, "mem": self.nodes * self.mem_mb, "gres/gpu": gpus, **typed}


def _trial_job(cluster: ClusterSettings) -> _Job:
    gpus = gpus_per_node(cluster)
    ranks = max(1, gpus)
    return _Job(
        setting="cluster.partition",
        partition=partition(cluster, cluster.partition),
        nodes=cluster.nodes,
        gpus=gpus,
        gpu_type=cluster.gpu_type if gpus else None,
        cpus=ranks * cluster.cpus_per_gpu,
        mem_mb=ranks * cluster.mem_gb_per_gpu * 1024,
        minutes=cluster.time_min,
        constraint=cluster.constraint,
    )


def _too_short(cluster: ClusterSettings, job: _Job, kinds: Sequence[NodeKind]) -> Iterator[str]:
    """A job that is asked to stop before it has started to train would be started again in vain."""
    mine = [kind for kind in kinds if (kind.partition in job.partition.split(",") if job.partition else kind.is_default)]
    allowed = [kind.max_minutes for kind in mine if kind.max_minutes is not None]
    at_most = max(allowed) if allowed and len(allowed) == len(mine) else job.minutes
    minutes, stop = min(job.minutes, at_most), cluster.stop_before_end_s
    if minutes * 60 <= stop + START_UP_S:
        where = f"cluster.time_min={minutes}" if minutes == job.minutes else f"a partition that allows {minutes} min"
        yield (
            f"{where} leaves no time to train: of its {minutes * 60} s a trial needs about {START_UP_S} to start, and is asked "
            f"to stop {stop} before the end (cluster.stop_before_end_s); give it more time, or less to stop in"
        )


def _report_job(cluster: ClusterSettings) -> _Job:
    name = partition(cluster, cluster.report_partition)
    return _Job("cluster.report_partition", name, 1, 0, None, 1, REPORT_MEM_GB * 1024, REPORT_MIN, None)


def _nodes(site: _Site, job: _Job, kinds: Sequence[NodeKind]) -> Iterator[str]:
    there = sorted({kind.partition for kind in kinds})
    wanted = job.partition.split(",") if job.partition else [kind.partition for kind in kinds if kind.is_default]
    unknown = [name for name in wanted if name not in there]
    if not wanted:
        yield f"{job.setting} is not given, and no partition here is the default; there are {listed(there, 30)}"
    elif unknown:
        yield f"{job.setting}={','.join(unknown)}: no such partition here; there are {listed(there, 30)}"
    else:
        mine = [kind for kind in kinds if kind.partition in wanted]
        if not any(kind.is_up for kind in mine):
            site.notes.append(f"partition {listed(wanted)} is not up at the moment: jobs wait until it is")
        yield from _lacking(job, mine, f"partition {','.join(dict.fromkeys(wanted))}")


def _lacking(job: _Job, kinds: Sequence[NodeKind], where: str) -> Iterator[str]:
    """What no node gives to the job; if each thing is to be had, but not all on enough nodes, that."""
    gpus = max(kind.gpus_of(job.gpu_type) for kind in kinds)
    cpus, mem_mb = max(kind.cpus for kind in kinds), max(kind.mem_mb for kind in kinds)
    missing = []
    if job.gpus > gpus:
        types = sorted({name or "of no named type" for kind in kinds for name in kind.gpus})
        if not types:
            missing.append(f"cluster.gpus_per_node={job.gpus}: {where} has no GPUs")
        elif job.gpu_type and not gpus:
            missing.append(f"cluster.gpu_type={job.gpu_type}: {where} has GPUs {listed(types)}")
        else:
            missing.append(f"cluster.gpus_per_node={job.gpus}: a node of {where} has {gpus} {job.gpu_type or 'GPUs'} at most")
    if job.cpus > cpus:
        missing.append(f"{job.cpus} CPU cores per node (cluster.cpus_per_gpu for each GPU): {where} has {cpus} at most")
    if job.mem_mb > mem_mb:
        asked = f"{job.mem_mb / 1024:.0f} GB of memory per node (cluster.mem_gb_per_gpu for each GPU)"
        missing.append(f"{asked}: {where} has {mem_mb / 1024:.1f} GB at most")
    if _is_word(job.constraint) and not any(job.constraint in kind.features for kind in kinds):
        features = sorted(set().union(*(kind.features for kind in kinds)))
        missing.append(f"cluster.constraint={job.constraint}: {where} has nodes with {listed(features) or 'no features'}")
    longest = [kind.max_minutes for kind in kinds if kind.max_minutes is not None]
    if len(longest) == len(kinds) and job.minutes > max(longest):
        rest = "what is stopped there goes on in its next job"
        missing.append(f"cluster.time_min={job.minutes}: {where} allows {_counted(max(longest), 'minute')}; {rest}")
    yield from missing or _too_few(job, kinds, where)


def _too_few(job: _Job, kinds: Sequence[NodeKind], where: str) -> Iterator[str]:
    fits = [
        kind
        for kind in kinds
        if kind.gpus_of(job.gpu_type) >= job.gpus
        and kind.cpus >= job.cpus
        and kind.mem_mb >= job.mem_mb
        and (not _is_word(job.constraint) or job.constraint in kind.features)
    ]
    if not fits:
        feature = f" and the feature {job.constraint}" if job.constraint else ""
        together = f"{job.gpus} GPUs, {job.cpus} CPU cores, {job.mem_mb / 1024:.0f} GB{feature}"
        yield f"{together}: no node of {where} has all of these at once"
        return
    count = max(sum(kind.count for kind in fits if kind.partition == name) for name in {kind.partition for kind in fits})
    most = [kind.max_nodes for kind in fits if kind.max_nodes is not None]
    if job.nodes > count:
        yield f"cluster.nodes={job.nodes}: {where} has {count} such nodes"
    elif len(most) == len(fits) and job.nodes > max(most):
        yield f"cluster.nodes={job.nodes}: {where} allows {_counted(max(most), 'node')} a job"


def _is_word(constraint: str | None) -> bool:
    """A single feature; other expressions (a&b, [a|b]) are left to Slurm's own test."""
    return constraint is not None and re.fullmatch(r"[\w.-]+", constraint) is not None


def _rights(site: _Site, cluster: ClusterSettings, job: _Job, num_jobs: int, config: Mapping[str, str]) -> Iterator[str]:
    """Accounts and QOS, where the site enforces them."""
    if config.get("AccountingStorageEnforce", "associations") in ("none", "(null)", ""):
        return
    try:
        user = pwd.getpwuid(os.getuid()).pw_name  # not what USER says
    except KeyError:
        site.notes.append(f"accounts and QOS: not checked (the user id {os.getuid()} has no name here)")
        return
    mine = site.query(queries.associations_of(user), queries.associations, "accounts and QOS")
    if mine is None:
        return
    mine = [row for row in mine if row.cluster == config.get("ClusterName", row.cluster)]
    if not mine:
        yield f"user {user} has no account in Slurm here: ask the site for one"
        return
    account = (cluster.account or mine[0].default_account).lower()
    charged = [row for row in mine if row.account == account and row.partition in ("", *(job.partition or "").split(","))]
    if not charged:
        accounts = sorted({f"{row.account} (partition {row.partition})" if row.partition else row.account for row in mine})
        yield f"cluster.account={account}: not an account of {user} for this partition; there are {listed(accounts)}"
        return
    allowed = sorted({name for row in charged for name in row.qos})
    qos = cluster.qos or charged[0].default_qos or (allowed[0] if len(allowed) == 1 else None)
    if qos and qos not in allowed:
        yield f"cluster.qos={qos}: account {account} may use {listed(allowed) or 'none'}"
    elif qos and (limits := site.query(queries.limits_of(qos), queries.limits, f"limits of QOS {qos}")) and qos in limits:
        yield from _over(limits[qos], f"QOS {qos}", job, num_jobs)


def _over(limits: Limits, where: str, job: _Job, num_jobs: int) -> Iterator[str]:
    if limits.max_minutes is not None and job.minutes > limits.max_minutes:
        yield f"cluster.time_min={job.minutes}: {where} allows {_counted(limits.max_minutes, 'minute')}"
    for name, count in job.counted.items():
        unit = "MB of memory" if name == "mem" else {"node": "nodes", "cpu": "CPU cores"}.get(name, f"GPUs ({name})")
        for most, whose in ((limits.per_job.get(name), "a job"), (limits.per_user.get(name), "a user")):
            if most is not None and count > most:
                yield f"{count} {unit} for each trial's job: {where} allows {whose} {most}"
        most = limits.minutes_per_job.get(name)
        if most is not None and count * job.minutes > most:
            asked = f"{count} {unit} for {job.minutes} minutes are {count * job.minutes / 60:.1f} hours of them"
            yield f"{asked}: {where} allows a job {most / 60:.1f}, so cluster.time_min={most // count} at most"
    if limits.max_submitted is not None and num_jobs + 1 > limits.max_submitted:
        yield (
            f"{_counted(num_jobs, 'trial')} and their report are {num_jobs + 1} jobs: {where} allows a user "
            f"{limits.max_submitted} at a time; launch fewer seeds now and add seeds later, or see cluster.trials_per_gpu"
        )


def _counted(number: int, what: str) -> str:
    """As settings are written, without a comma in thousands."""
    return f"{number} {what}{'s' * (number != 1)}"


def _disk(site: _Site, cluster: ClusterSettings, run_root: Path, needed: float) -> Iterator[str]:
    existing = next(path for path in (run_root, *run_root.absolute().parents) if path.exists()).resolve()
    try:
        scratch = expanded(cluster.scratch or "/").resolve()
        if not existing.is_relative_to(scratch):
            site.notes.append(f"run.root={run_root} is not where large files belong at this site: see run.root={scratch}/runs")
    except UserError as error:
        site.notes.append(f"cluster.scratch: {error}")
    place = site.query(queries.file_system_of(str(existing)), queries.file_system, "free disk")
    if place is None:
        return
    # Without the command there is no quota to ask for; it also ends with 1 where a quota is exceeded.
    said = site.ask(queries.quota_of(os.getuid(), place), "")
    try:
        quota = queries.quota_left(said.out, place)
    except ValueError:
        quota = None
        site.notes.append(f"quota: not checked ({said.words[:300]})")
    left, why = min((place.free, "free"), (place.free if quota is None else quota, "left of the quota"))
    if needed > left:
        yield (
            f"run.root={run_root}: about {needed / 1e9:.1f} GB are needed while all trials train, and {left / 1e9:.1f} GB "
            f"are {why}; lower cluster.parallel, or choose another run.root"
        )


def _test(site: _Site, name: str, text: str) -> Iterator[str]:
    """Slurm's own word on a batch script; what the script waits for is not there yet."""
    lines = [line for line in text.splitlines() if not line.startswith("#SBATCH --dependency")]
    reply = site.ask(("sbatch", "--test-only"), "\n".join(lines) + "\n")
    if reply.code in (124, 127):
        site.notes.append(f"Slurm's own test of the {name} script: not made ({reply.words})")
    elif reply.code:
        yield f"Slurm's own test of the {name} script: {reply.words}"
    else:
        site.notes.append(f"Slurm's own test of the {name} script: {reply.words.removeprefix('sbatch: ')}")


def submit_room(cluster: ClusterSettings, ask: Ask = queries.ask) -> int | None:
    return None


def max_array_size(ask: Ask = queries.ask) -> int | None:
    reply = ask(queries.CONFIG, "")
    return int(queries.config(reply.out).get("MaxArraySize", 0)) or None if reply.code == 0 else None
