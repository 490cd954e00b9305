"""The commands: start, stop, cut, mend; and the guard, which `start` runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a folder: python tools/slurm_here
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ser_hpc.core import cli
from slurm_here import Cluster, Options, start


def guard(folder: Path) -> None:
    """Stop the cluster when its owner closes the pipe, by whatever end it met, without having said to keep it."""
    if sys.stdin.readline().strip() != "keep":
        Cluster(folder).stop()


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
