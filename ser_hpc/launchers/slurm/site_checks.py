"""Check before anything is queued that the site would take the jobs, and that they could ever start.

Slurm takes many a job that can never start (over a partition's time limit, over a QOS's GPUs), and explains little when it
refuses. So the site is asked what it has and what this user may do (slurm_info.py), and last whether it would take the very
scripts (`sbatch --test-only`). What a command does not say is not checked, and that is noted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ser_hpc.config.cluster import ClusterSettings, expand_path
from ser_hpc.core.errors import UserError, listed
from ser_hpc.launchers.slurm import slurm_info
from ser_hpc.launchers.slurm.slurm_info import NodeKind, QueryRunner, Site
from ser_hpc.launchers.slurm.submit import REPORT_MEM_GB, REPORT_MIN, gpus_per_node
from ser_hpc.launchers.slurm.user_limits import Charge, limits_exceeded, max_array_size, resolve_charge, submit_room

START_UP_S = 30  # until a trial's first step, at the least: Python, torch, shards, the ranks' meeting
# In these words Slurm's test refuses what would never start, and also what only cannot start now.
_NOT_NOW = re.compile(r"node configuration is not available|node not available|down, drained|not available now|nodes are busy")
_ROOM = "your limits allow {} more at the moment"


def check_trial_jobs(
    cluster: ClusterSettings,
    run_root: Path,
    disk_bytes: float,
    scripts: Sequence[tuple[str, str]],
    ask: QueryRunner = slurm_info.run_query,
    *,
    own_test: bool = True,
) -> list[str]:
    """Return notes worth reading; raise UserError with everything that is in the way of the trials' jobs and their report.

    `disk_bytes`: what the run may come to need below `run_root`; `scripts`: name and text of the batch scripts
    (submit.batch_scripts); `own_test`: whether Slurm is asked if it would take them.
    """
    site = Site(ask)
    trial, report = _trial_job(cluster), _report_job(cluster)
    kinds = site.query(slurm_info.NODE_KINDS, slurm_info.node_kinds, "partitions and nodes")
    problems = [*_path("run.root", run_root), *_too_short(cluster, trial, kinds or ()), *_shell(site, cluster)]
    if kinds:
        problems += _nodes(site, trial, kinds)
        problems += _nodes(site, report, kinds) if cluster.report_partition else ()
    problems += _rights(site, cluster, trial)
    problems += _disk(site, cluster, run_root, disk_bytes)
    tests = [(name, text, report if name == "report" else trial) for name, text in scripts] if own_test else []
    return _concluded(site, kinds, problems, tests)


def check_packing_jobs(
    cluster: ClusterSettings,
    num_jobs: int,
    folder: Path,
    script: str,
    ask: QueryRunner = slurm_info.run_query,
    *,
    own_test: bool = True,
) -> list[str]:
    """Return notes on `num_jobs` packing jobs; raise UserError with all that is in their way. `folder`: where their logs go."""
    site = Site(ask)
    kinds = site.query(slurm_info.NODE_KINDS, slurm_info.node_kinds, "partitions and nodes")
    job = _trial_job(cluster)
    problems = [*_path("OUT", folder), *_shell(site, cluster)]
    problems += _nodes(site, job, kinds) if kinds else ()
    for most, what in ((max_array_size(ask), "an array holds {} here (MaxArraySize)"), (submit_room(cluster, ask), _ROOM)):
        if most is not None and num_jobs > most:
            problems.append(f"--jobs {num_jobs}: {what.format(most)}")
    return _concluded(site, kinds, problems, [("packing", script, job)] if own_test else [])


def choose_gpus(cluster: ClusterSettings, ask: QueryRunner = slurm_info.run_query) -> tuple[ClusterSettings, list[str]]:
    """Return the settings with one type of GPU, of several the first that will do, and a note which.

    That is the first with nodes enough that fit the job and are there; else the first with such nodes, which are away at the
    moment; else the first, which `check_trial_jobs` then refuses with the reason.
    """
    types = cluster.gpu_types
    choices = [cluster.model_copy(update={"gpu_type": kind}) for kind in types]
    if len(types) == 1 or not gpus_per_node(cluster):
        return choices[0], []
    site = Site(ask)
    kinds = site.query(slurm_info.NODE_KINDS, slurm_info.node_kinds, "partitions and nodes")
    if not kinds:
        return choices[0], [f"cluster.gpu_type: {types[0]}, for it cannot be asked which of them there are"]
    jobs = [(choice, _trial_job(choice)) for choice in choices]
    will_do = [(choice, job) for choice, job in jobs if not [*_nodes(site, job, kinds)] and not _rights(site, choice, job)]
    there = [choice for choice, job in will_do if not _are_away(job, kinds)]
    chosen = (there or [choice for choice, _ in will_do] or choices)[0]
    return chosen, [f"cluster.gpu_type: {chosen.gpu_type}, of {listed(types)}"]


def _concluded(
    site: Site, kinds: Sequence[NodeKind] | None, problems: Sequence[str], tests: Sequence[tuple[str, str, _Job]]
) -> list[str]:
    """Return the notes, if there is no problem and Slurm's own test of the scripts finds none. Raises UserError."""
    refused: list[str] = []
    for name, text, job in tests:
        refused += _test(site, name, text, kinds is not None and _are_away(job, kinds))
    if refused and not problems:
        refused.append("where that is so only at the moment, launch (or pack) with --queue-anyway: without Slurm's own test")
    if problems or refused:
        head = "the jobs would not run at this site, so nothing was submitted:"
        raise UserError("\n  ".join([head, *problems, *refused]))
    return list(dict.fromkeys(site.notes))


def _path(setting: str, folder: Path) -> list[str]:
    """Refuse paths that Slurm would change: it fills in %j and the like, and takes backslashes away."""
    path = str(folder.resolve())
    if found := sorted({letter for letter in "%\\" if letter in path}):
        return [f"{setting}: Slurm would read {' and '.join(found)} in {path} in a way of its own; choose a path without it"]
    return []


@dataclass(frozen=True, slots=True)
class _Job:
    """What one job requests; `gpus`, `cpus` and `mem_mb` are per node. `setting` names what chose its partition."""

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
        partition=cluster.site_name(cluster.partition),
        nodes=cluster.nodes,
        gpus=gpus,
        gpu_type=cluster.gpu_types[0] if gpus else None,
        cpus=ranks * cluster.cpus_per_gpu,
        mem_mb=ranks * cluster.mem_gb_per_gpu * 1024,
        minutes=cluster.time_min,
        constraint=cluster.constraint,
    )


def _too_short(cluster: ClusterSettings, job: _Job, kinds: Sequence[NodeKind]) -> Iterator[str]:
    """Refuse a job that is told to stop before it has started to train: it would be started again in vain."""
    mine = [kind for kind in kinds if (kind.partition in job.partition.split(",") if job.partition else kind.is_default)]
    allowed = [kind.max_minutes for kind in mine if kind.max_minutes is not None]
    at_most = max(allowed) if allowed and len(allowed) == len(mine) else job.minutes
    minutes, stop = min(job.minutes, at_most), cluster.stop_before_end_s
    if minutes * 60 <= stop + START_UP_S:
        limit = f"cluster.time_min={minutes}" if minutes == job.minutes else f"a partition that allows {minutes} min"
        yield (
            f"{limit} leaves no time to train: of its {minutes * 60} s a trial needs about {START_UP_S} to start, and is asked "
            f"to stop {stop} before the end (cluster.stop_before_end_s); give it more time, or less to stop in"
        )


def _report_job(cluster: ClusterSettings) -> _Job:
    name = cluster.site_name(cluster.report_partition or cluster.partition)
    return _Job("cluster.report_partition", name, 1, 0, None, 1, REPORT_MEM_GB * 1024, REPORT_MIN, None)


def _nodes(site: Site, job: _Job, kinds: Sequence[NodeKind]) -> Iterator[str]:
    there = sorted({kind.partition for kind in kinds})
    wanted = _wanted(job, kinds)
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


def _wanted(job: _Job, kinds: Sequence[NodeKind]) -> list[str]:
    return job.partition.split(",") if job.partition else [kind.partition for kind in kinds if kind.is_default]


def _lacking(job: _Job, kinds: Sequence[NodeKind], partition: str) -> Iterator[str]:
    """Yield what no node gives to the job; if each thing is to be had, but not all on enough nodes, that."""
    gpus = max(kind.gpus_of(job.gpu_type) for kind in kinds)
    cpus, mem_mb = max(kind.cpus for kind in kinds), max(kind.mem_mb for kind in kinds)
    missing = []
    if job.gpus > gpus:
        types = sorted({name or "of no named type" for kind in kinds for name in kind.gpus})
        if not types:
            missing.append(f"cluster.gpus_per_node={job.gpus}: {partition} has no GPUs")
        elif job.gpu_type and not gpus:
            missing.append(f"cluster.gpu_type={job.gpu_type}: {partition} has GPUs {listed(types)}")
        else:
            missing.append(
                f"cluster.gpus_per_node={job.gpus}: a node of {partition} has {gpus} {job.gpu_type or 'GPUs'} at most"
            )
    if job.cpus > cpus:
        missing.append(f"{job.cpus} CPU cores per node (cluster.cpus_per_gpu for each GPU): {partition} has {cpus} at most")
    if job.mem_mb > mem_mb:
        requested = f"{job.mem_mb / 1024:.0f} GB of memory per node (cluster.mem_gb_per_gpu for each GPU)"
        missing.append(f"{requested}: {partition} has {mem_mb / 1024:.1f} GB at most")
    if _is_word(job.constraint) and not any(job.constraint in kind.features for kind in kinds):
        features = sorted(set().union(*(kind.features for kind in kinds)))
        missing.append(f"cluster.constraint={job.constraint}: {partition} has nodes with {listed(features) or 'no features'}")
    longest = [kind.max_minutes for kind in kinds if kind.max_minutes is not None]
    if len(longest) == len(kinds) and job.minutes > max(longest):
        rest = "what is stopped there goes on in its next job"
        missing.append(f"cluster.time_min={job.minutes}: {partition} allows {_counted(max(longest), 'minute')}; {rest}")
    yield from missing or _too_few(job, kinds, partition)


def _too_few(job: _Job, kinds: Sequence[NodeKind], partition: str) -> Iterator[str]:
    fits = _fitting(job, kinds)
    if not fits:
        feature = f" and the feature {job.constraint}" if job.constraint else ""
        together = f"{job.gpus} GPUs, {job.cpus} CPU cores, {job.mem_mb / 1024:.0f} GB{feature}"
        yield f"{together}: no node of {partition} has all of these at once"
        return
    count = _most_of_a_partition(fits)
    most = [kind.max_nodes for kind in fits if kind.max_nodes is not None]
    if job.nodes > count:
        yield f"cluster.nodes={job.nodes}: {partition} has {count} such nodes"
    elif len(most) == len(fits) and job.nodes > max(most):
        yield f"cluster.nodes={job.nodes}: {partition} allows {_counted(max(most), 'node')} a job"


def _fitting(job: _Job, kinds: Sequence[NodeKind]) -> list[NodeKind]:
    return [
        kind
        for kind in kinds
        if kind.gpus_of(job.gpu_type) >= job.gpus
        and kind.cpus >= job.cpus
        and kind.mem_mb >= job.mem_mb
        and (not _is_word(job.constraint) or job.constraint in kind.features)
    ]


def _most_of_a_partition(kinds: Sequence[NodeKind]) -> int:
    """Return the most nodes that one partition has: all of a job's are of one."""
    names = {kind.partition for kind in kinds}
    return max((sum(kind.count for kind in kinds if kind.partition == name) for name in names), default=0)


def _are_away(job: _Job, kinds: Sequence[NodeKind]) -> bool:
    """Return whether enough nodes fit the job, but too many of them are down, drained or reserved at the moment."""
    wanted = _wanted(job, kinds)
    fits = _fitting(job, [kind for kind in kinds if kind.partition in wanted])
    return _most_of_a_partition([kind for kind in fits if kind.is_there]) < job.nodes <= _most_of_a_partition(fits)


def _is_word(constraint: str | None) -> bool:
    """Return whether it is a single feature; other expressions (a&b, [a|b]) are left to Slurm's own test."""
    return constraint is not None and re.fullmatch(r"[\w.-]+", constraint) is not None


def _rights(site: Site, cluster: ClusterSettings, job: _Job) -> list[str]:
    charged = resolve_charge(site, cluster)
    return list(limits_exceeded(charged, job.counted, job.minutes)) if isinstance(charged, Charge) else charged


def _counted(number: int, what: str) -> str:
    """Format a count as settings are written, without a comma in thousands."""
    return f"{number} {what}{'s' * (number != 1)}"


def _disk(site: Site, cluster: ClusterSettings, run_root: Path, needed: float) -> Iterator[str]:
    existing = next(path for path in (run_root, *run_root.absolute().parents) if path.exists()).resolve()
    try:
        scratch = expand_path(cluster.scratch or "/").resolve()
        if not existing.is_relative_to(scratch):
            site.notes.append(f"run.root={run_root} is not where large files belong at this site: see run.root={scratch}/runs")
    except UserError as error:
        site.notes.append(f"cluster.scratch: {error}")
    place = site.query(slurm_info.file_system_of(str(existing)), slurm_info.file_system, "free disk")
    if place is None:
        return
    # Without the command there is no quota to ask for; it also ends with 1 where a quota is exceeded.
    reply = site.ask(slurm_info.quota_of(os.getuid(), place), "")
    try:
        quota = slurm_info.quota_left(reply.out, place)
    except ValueError:
        quota = None
        site.notes.append(f"quota: not checked ({reply.message[:300]})")
    left, kind = min((place.free, "free"), (place.free if quota is None else quota, "left of the quota"))
    if needed > left:
        yield (
            f"run.root={run_root}: about {needed / 1e9:.1f} GB are needed while all trials train, and {left / 1e9:.1f} GB "
            f"are {kind}; lower cluster.max_parallel_trials, or choose another run.root"
        )


def _shell(site: Site, cluster: ClusterSettings) -> Iterator[str]:
    """Yield what bash and srun would refuse of each trial, but only on a node."""
    if cluster.setup:
        reply = site.ask(("bash", "-n"), "\n".join(cluster.setup) + "\n")
        if reply.code not in (0, 124, 127):
            yield f"cluster.setup: bash cannot read these lines ({reply.message}); is a quote or a bracket open?"
    if cluster.srun_args:
        reply = site.ask(("srun", *cluster.srun_args, "--version"), "")
        if reply.code not in (0, 124, 127):
            yield f"cluster.srun_args: srun does not take {' '.join(cluster.srun_args)} ({reply.message})"


def _test(site: Site, name: str, text: str, are_away: bool) -> Iterator[str]:
    """Run Slurm's own test of a batch script without its dependency, which does not exist yet. `are_away`: of its nodes."""
    lines = [line for line in text.splitlines() if not line.startswith("#SBATCH --dependency")]
    reply = site.ask(("sbatch", "--test-only"), "\n".join(lines) + "\n")
    if reply.code in (124, 127):
        site.notes.append(f"Slurm's own test of the {name} script: not made ({reply.message})")
    elif reply.code and are_away and _NOT_NOW.search(reply.message):
        site.notes.append(f"{name}: will be queued, to wait until nodes come back that are down, drained or reserved now")
    elif reply.code:
        yield f"Slurm's own test of the {name} script: {reply.message}"
    else:
        site.notes.append(f"Slurm's own test of the {name} script: {reply.message.removeprefix('sbatch: ')}")
