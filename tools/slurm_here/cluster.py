"""A cluster: started, asked as any Slurm, struck by misfortunes, stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import write_text
from ser_hpc.core.errors import UserError
from slurm_here.configuration import GPUS, Options, draw_layout, read_layout, slurm_conf, slurmdbd_conf
from slurm_here.daemons import Daemons, born, checked, kill_all

PACKAGES = {  # and a command of each
    "munge": "munged",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurm-wlm": "sbatch",
    "slurmdbd": "slurmdbd",
    "mariadb-server": "mariadbd",
    "iproute2": "ip",
}
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}
UP = {"idle", "mixed", "allocated", "completing"}  # a node's states in which it answers
_MARIADB = ("--no-defaults", "--user=root", "--innodb-log-file-size=4M", "--innodb-flush-method=nosync", "--debug-no-sync")


class Cluster:
    """The cluster in `folder`. `env`: what Slurm's commands need to find it. Raises UserError where none was started."""

    def __init__(self, folder: Path) -> None:
        self.layout = read_layout(folder)
        self.folder, self.nodes, self.network = self.layout.folder, self.layout.nodes, self.layout.network
        foreign = ("SLURM", "SBATCH", "SRUN", "SALLOC", "SQUEUE", "SINFO", "SACCT", "SCANCEL")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.env["SLURM_CONF"] = str(self.folder / "slurm.conf")
        self.daemons = Daemons(self.folder, self.env)
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
        self.network.set_cable(node, state)

    def kill_slurmd(self, node: str, with_steps: bool = False) -> None:
        """SIGKILL. Without its steps they live on, as on a node whose daemon has crashed."""
        if with_steps:
            kill_all(lambda: [pid for pid in self._living(node) if born(pid) is not None])
        self.daemons.end(node, signal.SIGKILL)

    def restart_slurmd(self, node: str) -> None:
        """Start the node's daemon, after the end of one that runs, and wait until jobs can be placed there."""
        self.daemons.end(node, signal.SIGKILL)
        self._start_slurmd(node)
        self.daemons.until(f"{node} is up", lambda: self.node_state(node) in UP, node, 60)

    def stop_controller(self) -> None:
        """End slurmctld in order, its state saved; jobs run on."""
        self.daemons.end("slurmctld", signal.SIGTERM)

    def start_controller(self) -> None:
        self.daemons.start("slurmctld", ["slurmctld", "-D"])
        self.daemons.until("slurmctld answers", lambda: "is UP" in self.run("scontrol", "ping"), "slurmctld")

    @contextlib.contextmanager
    def changed(self, **options: Any) -> Iterator[None]:
        """With other options inside the block (`grace_time_s`, `send_user_signal` ...): slurmctld restarts before and after."""
        before = self.layout.options
        try:
            self._reconfigure(dataclasses.replace(before, **options))
            yield
        finally:
            self._reconfigure(before)

    def _reconfigure(self, options: Options) -> None:
        if options == self.layout.options:
            return
        self.layout = dataclasses.replace(self.layout, options=options)
        self.stop_controller()
        write_text(self.folder / "slurm.conf", slurm_conf(self.layout))
        self.start_controller()

    def rest(self) -> None:
        """As after the start: no jobs, every node whole and up, whatever has happened to it."""
        if not self.daemons.alive("slurmctld"):
            self.start_controller()
        self.run("scancel", "--user=root")
        for node in self.nodes:
            if self.network is not None:
                self.mend(node)
            if not self.daemons.alive(node) or self.node_state(node).startswith("down"):
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
        guard = [sys.executable, str(Path(__file__).parent), "guard", str(self.folder)]
        self._guard = subprocess.Popen(
            guard, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        for folder in ("log", "ctld", "spool", "munge"):
            (self.folder / folder).mkdir()
        if self.network is not None:
            self.network.build(self.folder / "hosts")
        self._start_munge()
        for gpu in range(GPUS):  # a device, as Slurm demands, though no GPU: another /dev/null
            os.mknod(self.folder / f"gpu{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        write_text(self.folder / "gres.conf", f"Name=gpu Type=h100 File={self.folder}/gpu[0-{GPUS - 1}]\n")
        # Nothing here uses control groups, but slurmd looks for a hierarchy of the newer kind unless told not to.
        write_text(self.folder / "cgroup.conf", f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.folder}/cgroup\n")
        write_text(self.folder / "slurm.conf", slurm_conf(self.layout))
        if self.layout.options.accounting:
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
        kill_all(self.processes)
        if self.network is not None:
            self.network.remove()
        shutil.rmtree(self.folder / "mariadb", ignore_errors=True)
        self.keep()

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o600)
        files = [f"--{file}-file={folder / file}" for file in ("key", "pid", "log", "seed")]
        self.daemons.start("munged", ["munged", "--foreground", "--force", f"--socket={folder}/socket", *files])
        self.daemons.until("munged listens", (folder / "socket").exists, "munged")

    def _start_accounting(self) -> None:
        where = f"--datadir={self.folder}/mariadb"
        door = self.folder / "mariadb.sock"
        install = ["mariadb-install-db", *_MARIADB, where, "--auth-root-authentication-method=socket", "--skip-test-db"]
        checked(install)
        self.daemons.start("mariadbd", ["mariadbd", *_MARIADB, where, f"--socket={door}", "--skip-networking"])
        self.daemons.until("mariadbd listens", door.exists, "mariadbd")
        write_text(self.folder / "slurmdbd.conf", slurmdbd_conf(self.layout))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        # Through the socket root is known by being root: no database port, no password.
        self.daemons.start("slurmdbd", ["slurmdbd", "-D"], MYSQL_UNIX_PORT=str(door))
        self.daemons.until(
            "slurmdbd answers", lambda: "here" in self.run("sacctmgr", "-i", "add", "cluster", "here"), "slurmdbd"
        )

    def _start_slurmd(self, node: str) -> None:
        command = ["slurmd", "-D", "-N", node]
        if self.network is not None:
            command = self.network.inside(node, self.folder / "hosts", command)
        self.daemons.start(node, command, SLURMD_NODENAME=node)  # which its steps inherit: see _living

    def processes(self) -> list[int]:
        """Process ids of all that the cluster has started: daemons, job steps and what these have started."""
        return [pid for pid in {*self.daemons.alive(), *self._living()} if born(pid) is not None]

    def _living(self, node: str | None = None) -> list[int]:
        """Process ids of all that lives on a node, or on any: slurmd, job steps and what these have started."""
        nodes = [node] if node else self.nodes
        if self.network is not None:
            return [pid for name in nodes for pid in self.network.living(name)]
        marks = {f"SLURMD_NODENAME={name}".encode() for name in nodes}
        ours = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                env = path.read_bytes().split(b"\0")
                if ours in env and marks.intersection(env):
                    found.append(int(path.parent.name))
        return found

    def _until_free(self) -> None:
        """No jobs and every node up; not `idle`, which a slurmctld that was restarted while jobs ran can forget to say."""
        for node in self.nodes:
            self.daemons.until(f"{node} is up", lambda node=node: self.node_state(node) in UP, node, 60)  # type: ignore[misc]
        self.daemons.until("all jobs have ended", lambda: not self.run("squeue", "--noheader"), "slurmctld", 60)


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
    draw_layout(folder, options)
    cluster = Cluster(folder)
    try:
        cluster.start()
    except BaseException:
        cluster.stop()
        raise
    return cluster
