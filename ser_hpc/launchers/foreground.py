"""Keep a run to one launcher that stays until its trials have ended; find it from elsewhere, and stop it.

RUN/.launcher is locked as long as it is at work, and says who it is: {"host", "pid", "began", "trials": [[seed, fold], ...]}.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ser_hpc.core.atomic_io import file_lock
from ser_hpc.core.errors import UserError
from ser_hpc.launchers.job_state import JobState
from ser_hpc.launchers.launcher import Batch, Launcher
from ser_hpc.run.run_dir import RunDir, Trial


class ForegroundLauncher(Launcher):
    """Run trials and come back when they have ended: derive from it and write `run`."""

    in_foreground = True

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Run the trials `todo` to their end. Whatever each of them left in the run says how it ended."""

    def submit(self, batch: Batch) -> Sequence[Trial]:
        with only_launcher(batch.run, batch.todo):
            self.run(batch)
        return ()

    def active(self, run: RunDir) -> Mapping[Trial, JobState]:
        """Return what a launcher like this one has yet to do, in whichever process it is at work."""
        if (other := _at_work(run)) is None:
            return {}
        job = JobState(f"process {other.pid} on {other.host}", state="RUNNING")
        return {trial: job for trial in other.trials if not run.trial(trial).is_done}

    def states(self, run: RunDir) -> tuple[Mapping[Trial, JobState], Sequence[str]]:
        """Return nothing: there is no queue that would know more than the trials write themselves."""
        return {}, ()

    def cancel(self, run: RunDir) -> Sequence[str]:
        """Interrupt the launcher that is at work on this machine, as Ctrl-C in its terminal would."""
        if (other := _at_work(run)) is None:
            return ()
        with suppress(OSError):
            if other.is_here:
                os.kill(other.pid, signal.SIGINT)
                return (f"Trials run on this machine: their launcher, process {other.pid}, was asked to save and stop.",)
        return (f"Trials run on {other.host} without Slurm: there, `kill -INT {other.pid}` makes them save and stop.",)


@dataclass(frozen=True, slots=True)
class _AtWork:
    """A launcher that is at work. `began`: its process's start, in ticks since its machine's."""

    host: str
    pid: int
    began: str
    trials: tuple[Trial, ...]

    @property
    def is_here(self) -> bool:
        """Tell whether it is the process of that number here: numbers are given anew, and a container has its own."""
        return self.host == socket.gethostname() and self.began == _began(self.pid)


def waiting_trials(run: RunDir) -> Mapping[Trial, float]:
    """Return the trials that a launcher at work has yet to finish, and since when it has had them, in epoch seconds."""
    other, since = _at_work(run), 0.0
    with suppress(OSError):
        since = run.launcher_lock.stat().st_mtime
    return {trial: since for trial in other.trials if not run.trial(trial).is_done} if other else {}


@contextmanager
def only_launcher(run: RunDir, trials: Sequence[Trial]) -> Iterator[None]:
    """Be the run's only launcher of this sort, for these trials. Raises UserError if there is another."""
    with ExitStack() as held:
        for last in (False, False, True):  # who only looks whether one is at work has it for an instant
            try:
                held.enter_context(file_lock(run.launcher_lock, wait=False))
                break
            except BlockingIOError:
                if last:
                    other = f"another launcher is running trials of {run.path} on this machine; wait for it or stop it"
                    raise UserError(other) from None
                time.sleep(0.05)
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}
        with suppress(OSError):  # in place: the lock is the file's, not the name's
            run.launcher_lock.write_text(json.dumps(mine | {"trials": [[trial.seed, trial.fold] for trial in trials]}))
        yield


def _at_work(run: RunDir) -> _AtWork | None:
    """Return the launcher that holds the lock, if any does, and has said who it is."""
    if not run.launcher_lock.exists():
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        try:
            with file_lock(run.launcher_lock, wait=False):
                return None
        except BlockingIOError:
            said = json.loads(run.launcher_lock.read_text(encoding="utf-8"))
            return _AtWork(said["host"], said["pid"], said["began"], tuple(Trial(*trial) for trial in said["trials"]))
    return None


def _began(pid: int) -> str:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
