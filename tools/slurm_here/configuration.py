"""How large a cluster is, where its daemons listen, and what Slurm reads of that: slurm.conf and slurmdbd.conf."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import socket
from dataclasses import dataclass
from pathlib import Path

from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from slurm_here import network
from slurm_here.network import Network

GPUS = 2  # a node


@dataclass(frozen=True)
class Options:
    """`grace_time_s`: between a preempted job's first signal and its end; `send_user_signal`: that signal is the job's own
    (`sbatch --signal`), not only SIGTERM; `node_timeout_s`: a node that is silent for longer is lost; `network`: each node has
    a network of its own, where the system permits."""

    nodes: int = 3
    accounting: bool = True
    network: bool = True
    grace_time_s: int = 0
    send_user_signal: bool = True
    node_timeout_s: int = 10
    max_array_size: int = 1001


@dataclass(frozen=True)
class Layout:
    """What is fixed when a cluster starts, in FOLDER/cluster.json. `network`: None where all nodes share this machine's."""

    folder: Path
    options: Options
    ports: dict[str, int]
    network: Network | None

    @property
    def nodes(self) -> list[str]:
        return _node_names(self.options)

    def address(self, node: str | None = None) -> str:
        """Of a node, or of the controller."""
        return self.network.address(node) if self.network else "127.0.0.1"


def draw_layout(folder: Path, options: Options) -> None:
    """Write the layout of a new cluster: ports and addresses that nothing has now."""
    names = ["slurmctld", "slurmdbd", *_node_names(options)]
    layout = {
        "options": dataclasses.asdict(options),
        "ports": dict(zip(names, _free_ports(len(names)), strict=True)),
        "network": network.draw_number() if options.network and network.permitted() else None,
    }
    write_json(folder / "cluster.json", layout)


def read_layout(folder: Path) -> Layout:
    """Raise UserError where no cluster was started."""
    folder = folder.resolve()
    if not (folder / "cluster.json").exists():
        raise UserError(f"{folder} holds no cluster: start one there first")
    layout = read_json(folder / "cluster.json")
    options, number = Options(**layout["options"]), layout["network"]
    own = None if number is None else Network(number, _node_names(options))
    return Layout(folder, options, layout["ports"], own)


def _node_names(options: Options) -> list[str]:
    return [f"n{number + 1}" for number in range(options.nodes)]


def _free_ports(number: int) -> list[int]:
    """Below those that outgoing connections are given, so that a daemon finds its own free again after a restart."""
    ports: list[int] = []
    while len(ports) < number:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
    return ports


def slurm_conf(layout: Layout) -> str:
    folder, ports, options = layout.folder, layout.ports, layout.options
    # cred_expire (a requeued job starts no earlier; 5 s is the least), KillWait and the scheduler's intervals: for speed.
    text = f"""
        ClusterName=here
        SlurmctldHost=localhost({layout.address()})
        SlurmctldPort={ports["slurmctld"]}
        SlurmUser=root
        AuthType=auth/munge
        AuthInfo=socket={folder}/munge/socket,cred_expire=5
        StateSaveLocation={folder}/ctld
        SlurmdSpoolDir={folder}/spool/%n
        SlurmctldLogFile={folder}/log/slurmctld
        SlurmdLogFile={folder}/log/%n
        SlurmctldPidFile={folder}/slurmctld.pid
        SlurmdPidFile={folder}/%n.pid
        SelectType=select/cons_tres
        SelectTypeParameters=CR_Core_Memory
        DefMemPerCPU=1000
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        JobAcctGatherType=jobacct_gather/none
        MpiDefault=none
        GresTypes=gpu
        SlurmdParameters=config_overrides
        {"SlurmctldParameters=preempt_send_user_signal" if options.send_user_signal else ""}
        SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
        PreemptType=preempt/partition_prio
        PreemptMode=REQUEUE
        JobRequeue=1
        ReturnToService=2
        SlurmdTimeout={options.node_timeout_s}
        KillWait=5
        MaxArraySize={options.max_array_size}
        EnforcePartLimits=ALL
    """
    if options.accounting:
        text += f"""
        AccountingStorageType=accounting_storage/slurmdbd
        AccountingStorageEnforce=associations,limits,qos
        AccountingStorageHost={layout.address()}
        AccountingStoragePort={ports["slurmdbd"]}
        AccountingStoragePass={folder}/munge/socket
        AccountingStorageTRES=gres/gpu
    """
    for node in layout.nodes:
        host = "localhost" if layout.network is None else node
        text += f"""
        NodeName={node} NodeHostname={host} NodeAddr={layout.address(node)} Port={ports[node]} \\
        CPUs=8 RealMemory=64000 Gres=gpu:h100:{GPUS}
    """
    text += f"""
        PartitionName=gpu Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={options.grace_time_s}
        PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
        PartitionName=short Nodes=ALL PriorityTier=1 PreemptMode=OFF MaxTime=1
        PartitionName=cpu Nodes=ALL PriorityTier=1 PreemptMode=OFF
    """
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()) + "\n"


def slurmdbd_conf(layout: Layout) -> str:
    return f"""AuthType=auth/munge
AuthInfo=socket={layout.folder}/munge/socket
DbdHost=localhost
DbdAddr={layout.address()}
DbdPort={layout.ports["slurmdbd"]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
PidFile={layout.folder}/slurmdbd.pid
LogFile={layout.folder}/log/slurmdbd
"""
