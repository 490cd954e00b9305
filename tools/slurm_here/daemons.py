"""The processes of a cluster, recorded with the time of their birth: a number used again is never mistaken for ours."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ser_hpc.core.errors import UserError


class Daemons:
    """Those that were started in `folder`, where `processes` lists them and log/ holds what they said; `env` is theirs."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env
        self._children: list[subprocess.Popen[bytes]] = []  # held, so that Python does not complain of forgotten ones

    def start(self, name: str, command: list[str], **env: str) -> None:
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
            file.write(f"{name} {child.pid} {born(child.pid) or 'dead'}\n")  # it may have ended already

    def alive(self, name: str | None = None) -> list[int]:
        """Process ids of a daemon (by name), or of all daemons."""
        path = self.folder / "processes"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [int(pid) for known, pid, birth in lines if name in (None, known) and str(born(int(pid))) == birth]

    def end(self, name: str, how: signal.Signals) -> None:
        for pid in self.alive(name):
            os.kill(pid, how)
        while self.alive(name):
            time.sleep(0.05)

    def until(self, what: str, test: Callable[[], bool], name: str, timeout_s: float = 30) -> None:
        """Wait for something that a daemon brings about. Raises UserError with the end of its log."""
        deadline = time.monotonic() + timeout_s
        while self.alive(name) and time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                if test():
                    return
            time.sleep(0.1)
        log = self.folder / "log" / f"{name}.out"
        why = f"not within {timeout_s:.0f} s" if self.alive(name) else f"{name} has ended"
        raise UserError("\n  ".join([f"{what}: {why}; {log} ends with", *log.read_text(errors="replace").splitlines()[-8:]]))


def born(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def kill_all(pids: Callable[[], list[int]]) -> None:
    """SIGKILL until none is left: a process can start another while it is being killed."""
    while living := pids():
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def checked(command: Sequence[str], must: bool = True) -> str:
    """Output of a command. Raises UserError with its words where it must succeed, and does not."""
    done = subprocess.run(command, capture_output=True, text=True)
    if must and done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
