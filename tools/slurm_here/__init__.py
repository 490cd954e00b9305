"""A real Slurm on one machine, to try things and to test against: `python tools/slurm_here start FOLDER`, `... stop FOLDER`.

munge, MariaDB, slurmdbd, slurmctld and a few slurmd, all with files, sockets and ports of their own, so that neither a Slurm of
this machine nor another cluster of this kind is touched. Every node claims two H100 that are not there. Where the system
permits, a node has a host name, an address and a network cable of its own (UTS, mount and network namespaces on a bridge), so
that it can be cut off; elsewhere all nodes share this machine's. Partitions, each of all nodes:

    gpu      the default; preempted jobs are requeued
    urgent   preempts `gpu`
    short    a time limit of one minute
    cpu      for jobs that need no GPU; like `short` it neither preempts nor is preempted

A guard, a process of its own, stops a cluster whose owner is gone, whether that ended well, was interrupted or was killed.
FOLDER must be new or empty; it stays, with the daemons' logs. Needs root, and the Debian packages in `PACKAGES`.

cluster.py         a cluster: started, asked, struck by misfortunes, stopped
configuration.py   how large it is, and what Slurm reads
network.py         the nodes' own networks, and their cables
daemons.py         the processes, each known by its number and birth
"""

from slurm_here.cluster import PACKAGES, Cluster, missing, start
from slurm_here.configuration import Options

__all__ = ["PACKAGES", "Cluster", "Options", "missing", "start"]
