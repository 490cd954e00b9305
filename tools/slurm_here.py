"""A real Slurm on one machine, to try things and to test against: `python tools/slurm_here.py start FOLDER`, `... stop FOLDER`.

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
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json, write_json, write_text
from ser_hpc.core.errors import UserError

PACKAGES = {  # and a command of each
    "munge": "munged",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurm-wlm": "sbatch",
    "slurmdbd": "slurmdbd",
    "mariadb-server": "mariadbd",
    "iproute2": "ip",
}
GPUS = 2  # a node
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}
UP = {"idle", "mixed", "allocated", "completing"}  # a node's states in which it answers
_MARIADB = ("--no-defaults", "--user=root", "--innodb-log-file-size=4M", "--innodb-flush-method=nosync", "--debug-no-sync")


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


class Cluster:
    """The cluster in `folder`. `env`: what Slurm's commands need to find it. Raises UserError where none was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        if not (self.folder / "cluster.json").exists():
            raise UserError(f"{folder} holds no cluster: start one there first")
        layout = read_json(self.folder / "cluster.json")
        self.options = Options(**layout["options"])
        self.ports: dict[str, int] = layout["ports"]
        self.network: int | None = layout[
            "network"
        ]  # drawn anew for each cluster: in the names of what it adds, and in addresses
        self.nodes = [f"n{number + 1}" for number in range(self.options.nodes)]
        foreign = ("SLURM", "SBATCH", "SRUN", "SALLOC", "SQUEUE", "SINFO", "SACCT", "SCANCEL")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.env["SLURM_CONF"] = str(self.folder / "slurm.conf")
        self._children: list[subprocess.Popen[bytes]] = []  # held, so that Python does not complain of forgotten ones
        self._guard: subprocess.Popen[str] | None = None

    # What is asked of any Slurm

    def run(self, *command: str | Path, timeout_s: float = 60) -> str:
        """Run one of Slurm's commands; returns its standard output. Raises RuntimeError with its words if it fails."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout_s)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} exited {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def sbatch(self, *arguments: str | Path) -> str:
        """Submit; returns the job id (an array's own)."""
        return self.run("sbatch", "--parsable", *arguments)

    def states(self) -> dict[str, str]:
        """State by job id (`7`, or `7_2` for an array's element) of all jobs that slurmctld remembers (the last minutes')."""
        lines = self.run("squeue", "--array", "--states=all", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, jobs: Sequence[str], timeout_s: float = 120) -> dict[str, str]:
        """Wait until these jobs, and every element of arrays among them, have ended; returns their states."""
        deadline = time.monotonic() + timeout_s
        while True:
            states = {job: state for job, state in self.states().items() if job in jobs or job.split("_")[0] in jobs}
            if set(states.values()) <= ENDED:
                return states
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_s:.0f} s:\n{self.run('squeue')}")
            time.sleep(0.3)

    def node_state(self, node: str) -> str:
        """`idle`, `mixed`, `down*` ...: a star for a node that does not answer."""
        return self.run("sinfo", "--noheader", f"--nodes={node}", "--partition=gpu", "--format=%T")

    # Misfortunes, and their end

    def cut(self, node: str) -> None:
        """Pull the node's network cable. Raises UserError where nodes have none."""
        self._cable(node, "down")

    def mend(self, node: str) -> None:
        """Plug the cable in again."""
        self._cable(node, "up")

    def _cable(self, node: str, state: str) -> None:
        if self.network is None:
            raise UserError("nodes share this machine's network (namespaces are not permitted, or not wanted): nothing to cut")
        _ip(f"link set {self._name(node)} {state}")

    def kill_slurmd(self, node: str, with_steps: bool = False) -> None:
        """SIGKILL. Without its steps they live on, as on a node whose daemon has crashed."""
        if with_steps:
            _kill_all(lambda: [pid for pid in self._living(node) if _born(pid) is not None])
        self._end(node, signal.SIGKILL)

    def restart_slurmd(self, node: str) -> None:
        """Start the node's daemon, after the end of one that runs, and wait until jobs can be placed there."""
        self._end(node, signal.SIGKILL)
        self._start_slurmd(node)
        self._until(f"{node} is up", lambda: self.node_state(node) in UP, node, 60)

    def stop_controller(self) -> None:
        """End slurmctld in order, its state saved; jobs run on."""
        self._end("slurmctld", signal.SIGTERM)

    def start_controller(self) -> None:
        self._daemon("slurmctld", ["slurmctld", "-D"])
        self._until("slurmctld answers", lambda: "is UP" in self.run("scontrol", "ping"), "slurmctld")

    @contextlib.contextmanager
    def changed(self, **options: Any) -> Iterator[None]:
        """With other options inside the block (`grace_time_s`, `send_user_signal` ...): slurmctld restarts before and after."""
        before = self.options
        try:
            self._reconfigure(dataclasses.replace(before, **options))
            yield
        finally:
            self._reconfigure(before)

    def _reconfigure(self, options: Options) -> None:
        if options == self.options:
            return
        self.options = options
        self.stop_controller()
        write_text(self.folder / "slurm.conf", _slurm_conf(self))
        self.start_controller()

    def rest(self) -> None:
        """As after the start: no jobs, every node whole and up, whatever has happened to it."""
        if not self._alive("slurmctld"):
            self.start_controller()
        self.run("scancel", "--user=root")
        for node in self.nodes:
            if self.network is not None:
                self.mend(node)
            if not self._alive(node) or self.node_state(node).startswith("down"):
                self.kill_slurmd(node, with_steps=True)
                self._start_slurmd(node)
        self.undrain()
        self._until_free()

    def undrain(self) -> None:
        """Take back drained nodes."""
        for node in self.nodes:
            if "drain" in self.node_state(node):
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    # Start and stop

    def start(self) -> None:
        """Bring everything up, in some seconds. Raises UserError with the end of the log of what does not come up."""
        guard = [sys.executable, __file__, "guard", str(self.folder)]
        self._guard = subprocess.Popen(
            guard, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        for folder in ("log", "ctld", "spool", "munge"):
            (self.folder / folder).mkdir()
        self._build_network()
        self._start_munge()
        for gpu in range(GPUS):  # a device, as Slurm demands, though no GPU: another /dev/null
            os.mknod(self.folder / f"gpu{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        write_text(self.folder / "gres.conf", f"Name=gpu Type=h100 File={self.folder}/gpu[0-{GPUS - 1}]\n")
        # Nothing here uses control groups, but slurmd looks for a hierarchy of the newer kind unless told not to.
        write_text(self.folder / "cgroup.conf", f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.folder}/cgroup\n")
        write_text(self.folder / "slurm.conf", _slurm_conf(self))
        if self.options.accounting:
            self._start_accounting()
        self.start_controller()
        for node in self.nodes:
            self._start_slurmd(node)
        self._until_free()

    def keep(self) -> None:
        """Let the cluster outlive this process."""
        if self._guard:
            self._guard.communicate("keep\n")
            self._guard = None

    def stop(self) -> None:
        """End every daemon and job step and take the network away; nothing to do for a cluster that is stopped."""
        _kill_all(self.processes)
        if self.network is not None:
            for node in self.nodes:
                _ip(f"netns delete {self._name(node)}", must=False)
                _ip(f"link delete {self._name(node)}", must=False)
            _ip(f"link delete {self._name()}", must=False)
        shutil.rmtree(self.folder / "mariadb", ignore_errors=True)
        self.keep()

    def _name(self, node: str = "") -> str:
        """Of a node's namespace and cable; without a node, of the bridge."""
        return f"sl{self.network}{node}"

    def address(self, node: str | None = None) -> str:
        """Of a node, or of the controller."""
        if self.network is None:
            return "127.0.0.1"
        return f"{_subnet(self.network)}.{self.nodes.index(node) + 1 if node else 254}"

    def _build_network(self) -> None:
        if self.network is None:
            return
        bridge = self._name()
        _ip(f"link add {bridge} type bridge")
        _ip(f"address add {self.address()}/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        for node in self.nodes:
            name = self._name(node)
            _ip(f"netns add {name}")
            _ip(f"link add {name} type veth peer name eth0 netns {name}")
            _ip(f"link set {name} master {bridge} up")
            _ip(f"-n {name} address add {self.address(node)}/24 dev eth0")
            _ip(f"-n {name} link set eth0 up")
            _ip(f"-n {name} link set lo up")
        hosts = ["127.0.0.1 localhost", *(f"{self.address(node)} {node}" for node in self.nodes)]
        write_text(self.folder / "hosts", "\n".join(hosts) + "\n")

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o600)
        files = [f"--{file}-file={folder / file}" for file in ("key", "pid", "log", "seed")]
        self._daemon("munged", ["munged", "--foreground", "--force", f"--socket={folder}/socket", *files])
        self._until("munged listens", (folder / "socket").exists, "munged")

    def _start_accounting(self) -> None:
        where = f"--datadir={self.folder}/mariadb"
        door = self.folder / "mariadb.sock"
        install = ["mariadb-install-db", *_MARIADB, where, "--auth-root-authentication-method=socket", "--skip-test-db"]
        _checked(install)
        self._daemon("mariadbd", ["mariadbd", *_MARIADB, where, f"--socket={door}", "--skip-networking"])
        self._until("mariadbd listens", door.exists, "mariadbd")
        write_text(self.folder / "slurmdbd.conf", _slurmdbd_conf(self))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        # Through the socket root is known by being root: no database port, no password.
        self._daemon("slurmdbd", ["slurmdbd", "-D"], MYSQL_UNIX_PORT=str(door))
        self._until("slurmdbd answers", lambda: "here" in self.run("sacctmgr", "-i", "add", "cluster", "here"), "slurmdbd")

    def _start_slurmd(self, node: str) -> None:
        command = ["slurmd", "-D", "-N", node]
        if self.network is not None:
            own = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'
            enter = ["nsenter", f"--net=/run/netns/{self._name(node)}", "unshare", "--mount", "--uts"]
            command = [*enter, "sh", "-c", own, f"{self.folder}/hosts", node, *command]
        self._daemon(node, command, SLURMD_NODENAME=node)  # which its steps inherit: see _living

    # Processes: recorded with the time of their birth, so that a number used again is never mistaken for ours

    def _daemon(self, name: str, command: list[str], **env: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            child = subprocess.Popen(
                command,
                env=self.env | env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(child)
        with (self.folder / "processes").open("a") as file:
            file.write(f"{name} {child.pid} {_born(child.pid) or 'dead'}\n")  # it may have ended already

    def _alive(self, name: str | None = None) -> list[int]:
        """Process ids of a daemon (by name), or of all daemons."""
        path = self.folder / "processes"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [int(pid) for known, pid, born in lines if name in (None, known) and str(_born(int(pid))) == born]

    def processes(self) -> list[int]:
        """Process ids of all that the cluster has started: daemons, job steps and what these have started."""
        return [pid for pid in {*self._alive(), *self._living()} if _born(pid) is not None]

    def _living(self, node: str | None = None) -> list[int]:
        """Process ids of all that lives on a node, or on any: slurmd, job steps and what these have started."""
        nodes = [node] if node else self.nodes
        if self.network is not None:
            return [int(pid) for name in nodes for pid in _ip(f"netns pids {self._name(name)}", must=False).split()]
        marks = {f"SLURMD_NODENAME={name}".encode() for name in nodes}
        ours = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                env = path.read_bytes().split(b"\0")
                if ours in env and marks.intersection(env):
                    found.append(int(path.parent.name))
        return found

    def _end(self, name: str, how: signal.Signals) -> None:
        for pid in self._alive(name):
            os.kill(pid, how)
        while self._alive(name):
            time.sleep(0.05)

    def _until_free(self) -> None:
        """No jobs and every node up; not `idle`, which a slurmctld that was restarted while jobs ran can forget to say."""
        for node in self.nodes:
            self._until(f"{node} is up", lambda node=node: self.node_state(node) in UP, node, 60)  # type: ignore[misc]
        self._until("all jobs have ended", lambda: not self.run("squeue", "--noheader"), "slurmctld", 60)

    def _until(self, what: str, test: Callable[[], bool], name: str, timeout_s: float = 30) -> None:
        """Wait for something that a daemon brings about. Raises UserError with the end of its log."""
        deadline = time.monotonic() + timeout_s
        while self._alive(name) and time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                if test():
                    return
            time.sleep(0.1)
        log = self.folder / "log" / f"{name}.out"
        why = f"not within {timeout_s:.0f} s" if self._alive(name) else f"{name} has ended"
        raise UserError("\n  ".join([f"{what}: {why}; {log} ends with", *log.read_text(errors="replace").splitlines()[-8:]]))


def missing() -> str | None:
    """What keeps a cluster from being started here, in words."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root, for its daemons and their namespaces"
    packages = [package for package, command in PACKAGES.items() if not shutil.which(command)]
    return f"missing (in PATH): apt-get install {' '.join(packages)}" if packages else None


def start(folder: Path, options: Options | None = None) -> Cluster:
    """A new cluster, which ends with this process at the latest, unless it is kept. Raises UserError if it cannot be had."""
    options = options or Options()
    folder = folder.resolve()
    if why := missing():
        raise UserError(why)
    if len(str(folder)) > 70:
        raise UserError(f"{folder} is too long for the sockets in it: a path of at most 70 characters, please")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: a cluster needs a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    names = ["slurmctld", "slurmdbd", *(f"n{number + 1}" for number in range(options.nodes))]
    layout = {
        "options": dataclasses.asdict(options),
        "ports": dict(zip(names, _free_ports(len(names)), strict=True)),
        "network": _draw_network() if options.network and _namespaces() else None,
    }
    write_json(folder / "cluster.json", layout)
    cluster = Cluster(folder)
    try:
        cluster.start()
    except BaseException:
        cluster.stop()
        raise
    return cluster


def guard(folder: Path) -> None:
    """Stop the cluster when its owner closes the pipe, by whatever end it met, without having said to keep it."""
    if sys.stdin.readline().strip() != "keep":
        Cluster(folder).stop()


def _slurm_conf(cluster: Cluster) -> str:
    folder, ports, options = cluster.folder, cluster.ports, cluster.options
    # cred_expire (a requeued job starts no earlier; 5 s is the least), KillWait and the scheduler's intervals: for speed.
    text = f"""
        ClusterName=here
        SlurmctldHost=localhost({cluster.address()})
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
        AccountingStorageHost={cluster.address()}
        AccountingStoragePort={ports["slurmdbd"]}
        AccountingStoragePass={folder}/munge/socket
        AccountingStorageTRES=gres/gpu
    """
    for node in cluster.nodes:
        host = "localhost" if cluster.network is None else node
        text += f"""
        NodeName={node} NodeHostname={host} NodeAddr={cluster.address(node)} Port={ports[node]} \\
        CPUs=8 RealMemory=64000 Gres=gpu:h100:{GPUS}
    """
    text += f"""
        PartitionName=gpu Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={options.grace_time_s}
        PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
        PartitionName=short Nodes=ALL PriorityTier=1 PreemptMode=OFF MaxTime=1
        PartitionName=cpu Nodes=ALL PriorityTier=1 PreemptMode=OFF
    """
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()) + "\n"


def _slurmdbd_conf(cluster: Cluster) -> str:
    return f"""AuthType=auth/munge
AuthInfo=socket={cluster.folder}/munge/socket
DbdHost=localhost
DbdAddr={cluster.address()}
DbdPort={cluster.ports["slurmdbd"]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
PidFile={cluster.folder}/slurmdbd.pid
LogFile={cluster.folder}/log/slurmdbd
"""


def _namespaces() -> bool:
    """Whether this system lets a node have a network, a host name and mounts of its own."""
    trial = "ip link add name sl0 type bridge && mount --bind /etc/hosts /etc/hosts && hostname n1"
    return subprocess.run(["unshare", "--net", "--mount", "--uts", "sh", "-c", trial], capture_output=True).returncode == 0


def _draw_network() -> int:
    """A number for names, and for addresses that no cluster has now."""
    while _ip(f"route show {_subnet(number := random.SystemRandom().randrange(1 << 24))}.0/24"):
        pass
    return number


def _subnet(network: int) -> str:
    """198.18.0.0/15 is set aside for test beds (RFC 2544): no real network has it."""
    return f"198.{18 + network // 256 % 2}.{network % 256}"


def _free_ports(number: int) -> list[int]:
    """Below those that outgoing connections are given, so that a daemon finds its own free again after a restart."""
    ports: list[int] = []
    while len(ports) < number:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
    return ports


def _ip(arguments: str, must: bool = True) -> str:
    return _checked(["ip", *arguments.split()], must)


def _checked(command: Sequence[str], must: bool = True) -> str:
    """Output of a command. Raises UserError with its words where it must succeed, and does not."""
    done = subprocess.run(command, capture_output=True, text=True)
    if must and done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _born(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _kill_all(pids: Callable[[], list[int]]) -> None:
    """SIGKILL until none is left: a process can start another while it is being killed."""
    while living := pids():
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description="A real Slurm on one machine, to try things and to test against.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{start,stop,cut,mend}")
    for name, meaning in {"start": "", "stop": "", "cut": "pull a node's network cable", "mend": "plug it in again"}.items():
        command = commands.add_parser(name, help=meaning or f"{name} a cluster")
        command.add_argument("folder", type=Path, help="the cluster's own")
        if name in ("cut", "mend"):
            command.add_argument("node", help="n1, n2 ...")
    commands.choices["start"].add_argument("--nodes", type=int, default=Options.nodes)
    commands.choices["start"].add_argument("--no-accounting", action="store_true", help="without sacct and its database")
    commands.add_parser("guard").add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "start":
        cluster = start(given.folder, Options(nodes=given.nodes, accounting=not given.no_accounting))
        cluster.keep()
        print(cluster.run("sinfo"))
        print(f"export SLURM_CONF={cluster.env['SLURM_CONF']}")
    elif given.command == "guard":
        guard(given.folder)
    elif given.command == "stop":
        Cluster(given.folder).stop()
    else:
        getattr(Cluster(given.folder), given.command)(given.node)
    return 0


if __name__ == "__main__":
    cli.run_main(main)
