"""The nodes' own networks: a namespace a node, with a cable (a veth pair) to a bridge, so that a node can be cut off."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from ser_hpc.core.atomic_io import write_text
from slurm_here.daemons import checked


class Network:
    """`number`, drawn anew for each cluster, is in the names of what it adds to this machine, and in its addresses."""

    def __init__(self, number: int, nodes: list[str]) -> None:
        self.number = number
        self.nodes = nodes

    def build(self, hosts: Path) -> None:
        """Add the bridge and the nodes, and write their names and addresses to `hosts`."""
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
        lines = ["127.0.0.1 localhost", *(f"{self.address(node)} {node}" for node in self.nodes)]
        write_text(hosts, "\n".join(lines) + "\n")

    def remove(self) -> None:
        """Take everything away, as far as it is there."""
        for node in self.nodes:
            _ip(f"netns delete {self._name(node)}", must=False)
            _ip(f"link delete {self._name(node)}", must=False)
        _ip(f"link delete {self._name()}", must=False)

    def set_cable(self, node: str, state: str) -> None:
        """`up` or `down`."""
        _ip(f"link set {self._name(node)} {state}")

    def address(self, node: str | None = None) -> str:
        """Of a node, or of the controller."""
        return f"{_subnet(self.number)}.{self.nodes.index(node) + 1 if node else 254}"

    def inside(self, node: str, hosts: Path, command: list[str]) -> list[str]:
        """The command that runs `command` on a node: in its network, under its host name, with its own /etc/hosts."""
        own = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'
        enter = ["nsenter", f"--net=/run/netns/{self._name(node)}", "unshare", "--mount", "--uts"]
        return [*enter, "sh", "-c", own, str(hosts), node, *command]

    def living(self, node: str) -> list[int]:
        """Process ids of all that lives on a node."""
        return [int(pid) for pid in _ip(f"netns pids {self._name(node)}", must=False).split()]

    def _name(self, node: str = "") -> str:
        """Of a node's namespace and cable; without a node, of the bridge."""
        return f"sl{self.number}{node}"


def permitted() -> bool:
    """Whether this system lets a node have a network, a host name and mounts of its own."""
    trial = "ip link add name sl0 type bridge && mount --bind /etc/hosts /etc/hosts && hostname n1"
    return subprocess.run(["unshare", "--net", "--mount", "--uts", "sh", "-c", trial], capture_output=True).returncode == 0


def draw_number() -> int:
    """A number for names, and for addresses that no cluster has now."""
    while _ip(f"route show {_subnet(number := random.SystemRandom().randrange(1 << 24))}.0/24"):
        pass
    return number


def _subnet(network: int) -> str:
    """198.18.0.0/15 is set aside for test beds (RFC 2544): no real network has it."""
    return f"198.{18 + network // 256 % 2}.{network % 256}"


def _ip(arguments: str, must: bool = True) -> str:
    return checked(["ip", *arguments.split()], must)
