"""Find how many CPU cores this process may use: its share of the node, not what the node has.

A job is not always bound to its cores, and a container's quota binds nobody: threads by the number of the machine's cores then
wait for each other, spinning, and every sum is taken in another order than where the share is known.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from ser_hpc.core.errors import counted

THREADS = "OMP_NUM_THREADS"  # OpenMP's, and so torch's; MKL, OpenBLAS and Arrow go by it too
_TRIALS, _START = "SER_HPC_TRIALS_HERE", "SER_HPC_START"  # of the local launcher, for the ranks that it starts
_ONE_TASK = (_START, "TORCHELASTIC_RUN_ID")  # marks of the launchers whose ranks share what one task has
_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Share:
    """CPU cores, at least 1, and the `reason` why not more."""

    cores: int
    reason: str

    def among(self, sharers: int, kind: str) -> Share:
        """Divide by the number of sharers; `kind` names them, in the plural."""
        return self if sharers <= 1 else Share(max(1, self.cores // sharers), f"{self.reason}, shared by {sharers} {kind}")


def process_share(env: Mapping[str, str]) -> Share:
    """Tell what this process and its children may use together: the least of its affinity, its cgroups' CPU quota, and what
    Slurm gives to a task."""
    found = [Share(len(os.sched_getaffinity(0)), "the cores that this process may run on")]
    quota, slurm = cpu_quota(), _slurms(env)
    if quota is not None:
        found.append(Share(max(1, int(quota)), f"a CPU quota of {quota:g} cores"))
    return min([*found, *slurm], key=lambda share: share.cores)


def rank_share(env: Mapping[str, str], local_size: int) -> Share:
    """Tell what one rank may use of what it shares: with the trials that the local launcher runs side by side, and with the
    `local_size` ranks of its node. Of srun's ranks each is a task, with a share of its own; a quota is the job's."""
    whole = process_share(env)
    if any(mark in env for mark in _ONE_TASK):
        trials = env.get(_TRIALS, "") if _START in env else ""
        return whole.among(int(trials) if trials.isdigit() else 1, "trials").among(local_size, "ranks")
    quota = cpu_quota()
    each = max(1, int(quota / local_size)) if quota is not None else whole.cores
    return whole if each >= whole.cores else Share(each, f"a CPU quota of {quota:g} cores, shared by {local_size} ranks")


def choose_num_threads(env: Mapping[str, str], share: Share, sharers: int = 1) -> tuple[int, str]:
    """Choose how many threads each of `sharers` ranks gets, and say why not the whole machine's; "": they are.

    What the user set himself stands.
    """
    given = env.get(THREADS, "").partition(",")[0].strip()
    if given.isdigit() and int(given):
        return int(given), f"{THREADS} is set"
    return max(1, share.cores // sharers), share.reason if share.cores < (os.cpu_count() or 1) else ""


def limit_threads(env: MutableMapping[str, str], share: Share) -> str | None:
    """Give this process's libraries as many threads as its share has cores; to be called before they are imported.

    Returns a sentence where that is not the machine's number; none of the local launcher's ranks: it has said so already.
    """
    threads, reason = choose_num_threads(env, share)
    env.setdefault(THREADS, str(threads))
    return f"{counted(threads, 'thread')}: {reason}" if reason and _START not in env else None


def cpu_quota(own: Path = _OWN, root: Path = _CGROUPS) -> float | None:
    """Return the cores that the scheduler grants this process's cgroups, the least of them all; None: no quota to be seen."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        second = controllers == ""
        if not second and "cpu" not in controllers.split(","):
            continue
        for base in [root] if second else [root / "cpu", root / controllers]:
            folder = base / path.lstrip("/")
            inside = [base, *(parent for parent in [folder, *folder.parents] if base in parent.parents)]
            found += [_quota(place, second=second) for place in inside]
    return min((quota for quota in found if quota is not None), default=None)


def _quota(folder: Path, *, second: bool) -> float | None:
    """Read the quota of one cgroup, in cores, of the second version or the first."""
    names = ["cpu.max"] if second else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:
        quota, period = (int(word) for name in names for word in (folder / name).read_text(encoding="ascii").split())
    except (OSError, ValueError):  # not there, or `max`
        return None
    return quota / period if quota > 0 and period > 0 else None


def _slurms(env: Mapping[str, str]) -> list[Share]:
    """Read one task's share from Slurm's variables. One may be an outer job's leftover: a task has no more than its node."""
    if "SLURM_JOB_ID" not in env:
        return []
    counts = {name: int(env[name]) for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE") if env.get(name, "").isdigit()}
    found = [Share(cores, name) for name, cores in counts.items() if cores > 0]
    if "SLURM_CPUS_PER_TASK" not in counts:
        tasks = next((env[name] for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if env.get(name)), "1")
        first = tasks.partition("(")[0].partition(",")[0]  # 2(x3),1: the launchers ask for as many on every node
        found = [share.among(int(first) if first.isdigit() else 1, "tasks") for share in found]
    return found
