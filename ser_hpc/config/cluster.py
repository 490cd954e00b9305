"""Define the settings of the cluster, and read Slurm's notation of a time."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ser_hpc.config.launchers import OutsideLauncher
from ser_hpc.config.sbatch import SbatchOptions, SrunArguments
from ser_hpc.config.section import Positive, Section, Strings
from ser_hpc.core.errors import UserError


def slurm_minutes(text: str) -> int:
    """Convert Slurm's notations of a time to minutes: `90`, `90:00`, `4:00:00`, `1-12`, `1-12:30:00`; seconds are rounded up.

    Raises ValueError.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text, re.ASCII):
        raise ValueError("write minutes, or as Slurm does 90:00 (minutes:seconds), 4:00:00 or 1-12:00:00 (days-hours)")
    days, dash, rest = text.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    first = 3600 if dash or len(numbers) == 3 else 60
    units = (first, first // 60, 1)
    seconds = int(days or 0) * 86_400 + sum(number * unit for number, unit in zip(numbers, units, strict=False))
    return -(-seconds // 60)


def expand_path(folder: str) -> Path:
    """Expand `~` and $VARIABLES in a folder of the settings, as on this node. Raises UserError for a variable not set here."""
    path = os.path.expandvars(folder)
    if "$" in path:
        raise UserError(f"{folder} is no folder on {socket.gethostname()}: a variable in it is not set there")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{folder} is no folder on {socket.gethostname()}: {error}; give the folder's full path") from error


def _minutes(value: Any) -> Any:
    return slurm_minutes(value) if isinstance(value, str) else value


Minutes = Annotated[int, BeforeValidator(_minutes), Field(ge=1)]


class ClusterSettings(Section):
    """Where and how trials run; never part of what an experiment is. A profile is a file of these fields."""

    profile: str | None = None
    """The site: `local`, `generic`, `pace_ice` (see configs/cluster), or a YAML file of these fields; `slurm` means `generic`.
    `auto` or none: Slurm as in `generic` where it is configured, else this machine."""
    kind: Literal["auto", "slurm", "local"] = "auto"
    """`auto`: Slurm where it is configured, else this machine. A profile says it: rarely given by hand."""
    launcher: OutsideLauncher = None
    """What starts trials in the place of `kind`, from outside the package, as `my_launcher:Mine`; see docs/clusters.md."""
    partition: str | None = None
    """Slurm partition of the trials: a name of `partitions`, or the site's own; none: the site's default."""
    partitions: dict[str, str] = Field(default={})
    """This project's names of partitions to the site's, as `{gpu: ice-gpu, cpu: ice-cpu}`."""
    report_partition: str | None = None
    """Partition of the report's job, which needs no GPU; none: that of the trials."""
    account: str | None = None
    """Account to charge; none: the user's default."""
    qos: str | None = None
    """Quality of service; none: the account's default."""
    nodes: Positive = 1
    """Nodes per trial."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """GPUs, and so ranks, per node and trial; none: 1."""
    gpu_type: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Kind of GPU as the site writes it (`h100`), or several in order of preference (`[h100, a100]`): the first whose nodes fit
    and are not down, else the first whose nodes fit; none: any."""
    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How the site wants GPUs asked for: `--gpus-per-node=h100:2`, or the older `--gres=gpu:h100:2`."""
    constraint: str | None = None
    """Features that the trials' nodes must have, in Slurm's notation."""
    exclude: Strings = ()
    """Nodes that no job may use, in Slurm's notation (`n7`, or `[n7, "n[12-14]"]`)."""
    cpus_per_gpu: Positive = 6
    """CPU cores per GPU (per rank where there is none)."""
    mem_gb_per_gpu: Positive = 32
    """Main memory per GPU (per rank where there is none), in GB."""
    time_min: Minutes = 240
    """Time limit of a trial's job: minutes, or as Slurm writes it (4:00:00, 1-12:00:00)."""
    stop_before_end_s: Positive = 120
    """Seconds before its job's time limit at which a trial is asked to save and stop, to be started again."""
    max_starts_without_progress: Positive = 3
    """Starts of a trial in a row without a new optimizer step (or epoch scored) after which it is given up. Preemptions and
    lost nodes do not count."""
    max_parallel_trials: Positive | None = None
    """Trials at the same time at most."""
    trials_per_gpu: Positive = 1
    """Trials that share a job and its GPUs at the same time, where a model is small; on one node."""
    trials_per_job: Positive | None = None
    """Trials of a job, at most, that one process trains one after another, where each is a head on a frozen encoder's features,
    computed once; none: 32; 1: each has processes and a job of its own, as other trials have (but see `trials_per_gpu`).
    """
    setup: Strings = ()
    """Lines of shell before the jobs' Python starts, as `module load anaconda3` or `conda activate ser`. Each is a command of
    its own: where one fails, the job is started on another node (write `... || true` where that does no harm)."""
    python: str | None = None
    """Command that the jobs start Python with, as `apptainer exec --nv /images/ser.sif python`; none: the launcher's own. It
    must have this project's dependencies, submitit in the same version, and see the run directory under the same path."""
    sbatch: SbatchOptions = Field(default={})
    """Other options of sbatch that the site wants, by their long names: `{comment: thesis, reservation: class, licenses: "x:1",
    wckey: mine, mail-type: END}`; true: an option without a value; null or false: left out (what a profile gives). The report's
    and packing jobs get them too, but for those that ask for hardware, nodes or licences (`gres`, `licenses`, `exclusive`,
    `nodelist` ...)."""
    srun_args: SrunArguments = ()
    """Other options of srun, for all jobs: `["--container-image=/images/ser.sqsh"]`; taken as written, without a shell."""
    scratch: str | None = None
    """Folder for large files that all nodes see (`~` and $VARIABLES are expanded): the launcher says so where `run.root` is not
    below it."""
    node_local: str | None = None
    """Folder on a node's own disk (`$TMPDIR`, expanded there), to which shards are copied once per node before training; none:
    they are read where they lie."""

    def site_name(self, partition: str | None) -> str | None:
        """Return the site's own name of a partition; None: the site's default."""
        return self.partitions.get(partition, partition) if partition else None

    @property
    def gpu_types(self) -> tuple[str | None, ...]:
        """Return the GPU types in order of preference; (None,): any."""
        return self.gpu_type if isinstance(self.gpu_type, tuple) else (self.gpu_type,)

    @model_validator(mode="after")
    def _sharing_on_one_node(self) -> Self:
        if self.trials_per_gpu > 1 and self.nodes > 1:
            raise ValueError(f"trials_per_gpu={self.trials_per_gpu} is for small models: they share one node, so set nodes=1")
        return self
