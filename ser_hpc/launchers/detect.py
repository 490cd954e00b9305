"""Choose where trials run, Slurm or this machine, and how many fit on this machine at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.core import cores
from ser_hpc.core.errors import UserError, counted

_CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
_PING_S = 20
_NO_SLURM = (
    "Slurm is asked for (cluster.kind=slurm, as cluster profiles say), but {}. Nothing was started. Log in to the cluster, "
    "or use --cluster local to train on this machine."
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What trials on this machine share: `slots` of them at a time, `ranks` processes each, `threads` each.

    With more slots than GPUs for them, trials share GPUs. `reason`: why they have no more than so many `cores` and `threads`.
    """

    cores: int
    gpus: tuple[str, ...]
    slots: int
    ranks: int
    threads: int
    reason: str = ""

    def description(self) -> str:
        what = f"{self.ranks} {'GPU' if self.gpus else 'CPU'} rank{'s' * (self.ranks > 1)}"
        threads = f", {counted(self.threads, 'thread')} each ({self.reason})" if self.reason else ""
        return f"{self.slots} trial{'s' * (self.slots > 1)} at a time, {what} each{threads}"


def choose_launcher(kind: Literal["auto", "slurm", "local"]) -> tuple[Literal["slurm", "local"], str]:
    """Return Slurm or this machine, and the reason in one sentence.

    Raises UserError where Slurm is configured (or asked for) but does not answer: folds must not train on a login node by
    accident.
    """
    if kind == "local":
        return "local", "Trials run on this machine, as asked."
    configured = _configured()
    if shutil.which("sbatch") is None:
        if configured:
            raise UserError(
                "Slurm is configured here, but its commands are not in PATH (is there a module to load?). Nothing was started. "
                "Or use --cluster local to train on this machine on purpose."
            )
        if kind == "slurm":
            raise UserError(_NO_SLURM.format("its commands are not on this machine"))
        return "local", "There is no Slurm here: the trials run on this machine."
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=_PING_S, check=False)
        reply = (ping.stdout + ping.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        reply = f"scontrol ping: {error}"
    if " UP" in reply:
        return "slurm", "Slurm answers: the trials are submitted to it."
    if not configured and ("configuration" in reply or not reply):
        if kind == "slurm":
            raise UserError(_NO_SLURM.format(f"its commands have no configuration on this machine ({reply or 'no reply'})"))
        return "local", "Slurm's commands are here but not configured: the trials run on this machine."
    raise UserError(
        f"Slurm is {'configured ' * configured}here, but its controller does not answer ({reply or 'no reply'}). Nothing was "
        "started. Try again later, or use --cluster local to train on this machine on purpose."
    )


def describe_machine(cluster: ClusterSettings, num_trials: int | None = None, *, num_folds: int | None = None) -> Machine:
    """Divide this machine among as many trials as fit, or just `num_trials` of them at the same time.

    On a CPU a trial has one rank: trials side by side make more of the cores than ranks that wait for each other at every step.
    `num_folds`: the run has no more folds, so on a CPU no more of its trials run at a time, and each has the more threads; that
    is a number which stays, whatever is left of the run, as results round by it.

    Raises UserError if one trial asks for more than there is.
    """
    share, gpus = cores.process_share(os.environ), _gpus()
    if cluster.nodes > 1:
        raise UserError(f"cluster.nodes is {cluster.nodes}, but trials on this machine have one node; set cluster.nodes=1")
    ranks = cluster.gpus_per_node or 1
    have, what = (len(gpus), "GPUs") if gpus else (share.cores, "cores")
    if ranks > have and gpus:
        raise UserError(f"cluster.gpus_per_node is {ranks}, but this machine has {have} {what}")
    slots = max(1, have // ranks) * (cluster.trials_per_gpu if gpus else 1)
    if num_folds is not None and not gpus:
        slots = min(slots, num_folds)
    slots = num_trials or min(slots, cluster.max_parallel_trials or slots)
    threads, reason = cores.choose_num_threads(os.environ, share, slots * ranks)
    return Machine(share.cores, gpus, slots, ranks, threads, reason)


def _configured() -> bool:
    return "SLURM_CONF" in os.environ or any(Path(path).exists() for path in _CONFIGURATIONS)


def _gpus() -> tuple[str, ...]:
    """Return the ids of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part for part in visible.split(",") if part and part != "-1")
    if shutil.which("nvidia-smi") is None:
        return ()
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    return tuple(str(number) for number in range(count))
