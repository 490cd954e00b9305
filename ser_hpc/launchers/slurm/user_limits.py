"""Find out what a user may submit at a site: accounts and QOS, where it enforces them, and their limits per job and user."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.core.errors import listed
from ser_hpc.launchers.slurm import slurm_info
from ser_hpc.launchers.slurm.slurm_info import Association, Limits, QueryRunner, QueuedJob, Site


@dataclass(frozen=True, slots=True)
class Charge:
    """What a user's jobs are counted under. `layers`: limits with their names; of two that limit the same the first counts."""

    user: str
    associations: tuple[Association, ...]
    qos: str | None
    layers: tuple[tuple[str, Limits], ...]


def resolve_charge(site: Site, cluster: ClusterSettings) -> Charge | list[str]:
    """Return what the trials' jobs would be counted under; else the problems, none of them known if nothing can be asked."""
    config = site.query(slurm_info.CONFIG, slurm_info.config, "the size of arrays") or {}
    if config.get("AccountingStorageEnforce", "associations") in ("none", "(null)", ""):
        return []
    try:
        user = pwd.getpwuid(os.getuid()).pw_name  # not what USER says
    except KeyError:
        site.notes.append(f"accounts and QOS: not checked (the user id {os.getuid()} has no name here)")
        return []
    mine = site.query(slurm_info.associations_of(user), slurm_info.associations, "accounts and QOS")
    if mine is None:
        return []
    mine = [row for row in mine if row.cluster == config.get("ClusterName", row.cluster)]
    if not mine:
        return [f"user {user} has no account in Slurm here: ask the site for one"]
    account = (cluster.account or mine[0].default_account).lower()
    partitions = (cluster.site_name(cluster.partition) or "").split(",")
    charged = tuple(row for row in mine if row.account == account and row.partition in ("", *partitions))
    if not charged:
        accounts = sorted({f"{row.account} (partition {row.partition})" if row.partition else row.account for row in mine})
        return [f"cluster.account={account}: not an account of {user} for this partition; there are {listed(accounts)}"]
    exact = tuple(row for row in charged if row.partition)  # which Slurm goes by where there is one
    allowed = sorted({name for row in charged for name in row.qos})
    qos = cluster.qos or charged[0].default_qos or (allowed[0] if len(allowed) == 1 else None)
    if qos and qos not in allowed:
        return [f"cluster.qos={qos}: account {account} may use {listed(allowed) or 'none'}"]
    return Charge(user, exact or charged, qos, tuple(_layers(site, partitions, qos, exact or charged)))


def _layers(
    site: Site, partitions: Sequence[str], qos: str | None, rows: Sequence[Association]
) -> Iterator[tuple[str, Limits]]:
    """Yield the limits in Slurm's order: the QOS of the partition, of the job, the association."""
    names = [qos] if qos else []
    if len(partitions) == 1 and partitions[0]:
        of_partition = site.query(
            slurm_info.partition(partitions[0]), slurm_info.partition_qos, f"QOS of partition {partitions[0]}"
        )
        names = [of_partition, *names] if of_partition else names
    for name in dict.fromkeys(names):
        known = site.query(slurm_info.limits_of(name), slurm_info.limits, f"limits of QOS {name}")
        if known and name in known:
            yield f"QOS {name}", known[name]
    for row in rows:
        yield f"account {row.account}" + f" (partition {row.partition})" * bool(row.partition), row.limits


def limits_exceeded(charged: Charge, requested: Mapping[str, int], minutes: int) -> Iterator[str]:
    """Yield what a trial's job would be refused for, or never start for. `requested`: its counts by Slurm's names."""
    times = [(limits.max_minutes, layer) for layer, limits in charged.layers if limits.max_minutes is not None]
    for most, layer in times[:1]:
        if minutes > most:
            yield f"cluster.time_min={minutes}: {layer} allows {most} minute{'s' * (most != 1)}"
    for name, count in requested.items():
        unit = "MB of memory" if name == "mem" else {"node": "nodes", "cpu": "CPU cores"}.get(name, f"GPUs ({name})")
        for kind, whose in (("per_job", "a job"), ("per_user", "a user")):
            counts = [(getattr(limits, kind)[name], layer) for layer, limits in charged.layers if name in getattr(limits, kind)]
            for most, layer in counts[:1]:
                if count > most:
                    yield f"{count} {unit} for each trial's job: {layer} allows {whose} {most}"
        spans = [(limits.minutes_per_job[name], layer) for layer, limits in charged.layers if name in limits.minutes_per_job]
        for most, layer in spans[:1]:
            if count * minutes > most:
                hours = f"{count} {unit} for {minutes} minutes are {count * minutes / 60:.1f} hours of them"
                yield f"{hours}: {layer} allows a job {most / 60:.1f}, so cluster.time_min={most // count} at most"


def submit_room(cluster: ClusterSettings, ask: QueryRunner = slurm_info.run_query) -> int | None:
    """Return how many more jobs this user may submit now under these settings, 0 or more; each array element is a job.

    None where nothing limits it, or it cannot be asked.
    """
    site = Site(ask)
    charged = resolve_charge(site, cluster)
    if not isinstance(charged, Charge):
        return None
    if all(limits.max_submitted is None for _, limits in charged.layers):
        return None
    jobs = site.query(slurm_info.queue_of(charged.user), slurm_info.queue, "jobs in the queue")
    if jobs is None:
        return None
    rooms = []
    for layer, limits in charged.layers:
        if limits.max_submitted is not None:
            rooms.append(limits.max_submitted - sum(_counts(job, layer, charged) for job in jobs))
    return max(0, min(rooms))


def _counts(job: QueuedJob, layer: str, charged: Charge) -> bool:
    """Return whether a job of the queue is counted under this limit, as the next one will be."""
    if layer.startswith("QOS "):
        return job.qos == charged.qos or layer != f"QOS {charged.qos}"  # of a partition's QOS all may be, so all are
    return any(
        job.account.lower() == row.account and row.partition in ("", *job.partition.split(",")) for row in charged.associations
    )


def max_array_size(ask: QueryRunner = slurm_info.run_query) -> int | None:
    """Return how many elements an array may have here, counted from 0; None where it cannot be asked."""
    config = Site(ask).query(slurm_info.CONFIG, slurm_info.config, "the size of arrays") or {}
    sizes = [config.get("MaxArraySize", "")]
    sizes += [word.partition("=")[2] for word in config.get("SchedulerParameters", "").split(",") if "max_array_tasks=" in word]
    return min((int(size) for size in sizes if size.isdecimal()), default=None)
