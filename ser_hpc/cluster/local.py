"""Trials on this machine, without Slurm: a queue with slots, honest exit codes, and nothing left running.

Each rank is a process in a session of its own, so that a Ctrl-C in the terminal reaches the launcher alone, which asks the
ranks to stop (they save, and the same command goes on later) and ends what does not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ser_hpc.cluster import ready
from ser_hpc.cluster.site import Machine
from ser_hpc.engine.attempt import CANNOT_GO_ON, SUPERSEDED
from ser_hpc.errors import UserError
from ser_hpc.files import locked
from ser_hpc.results.run_dir import RunDir, Trial

FINAL = (0, CANNOT_GO_ON, SUPERSEDED)  # exit codes after which a trial is not started again
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_POLL_S = 0.2
_GRACE_S = 60.0


@dataclass(slots=True)
class LocalJob:
    """One trial's ranks. `started`: seconds since the epoch; `exit_code`: None while they run, then a failure's, or 0."""

    trial: Trial
    slot: int
    processes: list[subprocess.Popen[bytes]]
    log: IO[bytes]
    started: float
    exit_code: int | None = None
    asked: bool = field(default=False)

    def poll(self) -> int | None:
        codes = [process.poll() for process in self.processes]
        failed = next((code for code in codes if code not in (None, 0)), None)
        if failed is not None and any(code is None for code in codes):
            self.end(grace_s=0 if not self.asked else _GRACE_S)  # its fellows would wait for it in a collective
            codes = [process.poll() for process in self.processes]
        if all(code is not None for code in codes):
            self.exit_code = CANNOT_GO_ON if CANNOT_GO_ON in codes else failed or 0
            self.log.close()
        return self.exit_code

    def ask_to_stop(self) -> None:
        self.asked = True
        for process in self.processes:
            _signal(process, signal.SIGTERM)

    def end(self, grace_s: float) -> None:
        """Wait, then kill whatever is left, its own children too."""
        deadline = time.monotonic() + grace_s
        while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        for process in self.processes:
            _signal(process, signal.SIGKILL)
            process.wait()


def run_trials(
    run: RunDir,
    trials: Sequence[Trial],
    machine: Machine,
    on_poll: Callable[[Sequence[LocalJob]], None],
    environment: Mapping[str, str] | None = None,
    *,
    alone: bool = True,
) -> dict[Trial, int]:
    """Run every trial, as many at a time as there are slots; returns their exit codes. `on_poll` sees each trial's last job.

    What was killed, or failed in a way that another attempt may get over, is started again; after one failed for a reason that
    all share, no other is started, and those have no exit code. `environment`: more variables.
    `alone`: no other launcher may run trials of this run on this machine; jobs that hold several trials each are many.

    Raises UserError if another launcher runs trials of this run, KeyboardInterrupt after everything is ended.
    """
    waiting, free = list(trials), list(range(machine.slots))
    jobs: list[LocalJob] = []
    more = {"SER_HPC_LAUNCH": uuid.uuid4().hex, **(environment or {})}
    with _only_launcher(run) if alone else nullcontext(), _terminate_as_interrupt():
        try:
            while waiting or any(job.exit_code is None for job in jobs):
                while waiting and free:
                    jobs.append(_start(run, waiting.pop(0), free.pop(0), machine, more))
                time.sleep(_POLL_S)
                for job in [job for job in jobs if job.exit_code is None]:
                    if job.poll() is not None:
                        free.append(job.slot)
                        if job.exit_code not in FINAL:  # the trial itself refuses to fail at the same step for ever
                            waiting.insert(0, job.trial)
                            jobs.remove(job)
                        elif job.exit_code == CANNOT_GO_ON and ready.fails_for_all(run.trial(job.trial)):
                            waiting.clear()
                on_poll(jobs)
        except BaseException:
            for number in _STOP_SIGNALS:  # the second one, a moment later, must not cut short the saving
                signal.signal(number, signal.SIG_IGN)
            running = [job for job in jobs if job.exit_code is None]
            for job in running:
                job.ask_to_stop()
            for job in running:
                job.end(_GRACE_S)
            raise
    return {job.trial: job.exit_code or 0 for job in jobs}


def log_path(run: RunDir, trial: Trial) -> Path:
    return run.jobs / f"seed_{trial.seed}-fold_{trial.fold}.log"


def _start(run: RunDir, trial: Trial, slot: int, machine: Machine, more: Mapping[str, str]) -> LocalJob:
    run.jobs.mkdir(parents=True, exist_ok=True)
    log = log_path(run, trial).open("ab")
    command = [sys.executable, "-m", "ser_hpc.train", "--run-dir", str(run.path), "--fold", str(trial.fold)]
    environment = {**os.environ, **more} | {
        "WORLD_SIZE": str(machine.ranks),
        "LOCAL_WORLD_SIZE": str(machine.ranks),
        "SER_HPC_START": uuid.uuid4().hex,
        "SER_HPC_TRIALS_HERE": str(machine.slots),
        "SER_HPC_LOG": str(log_path(run, trial)),
        "OMP_NUM_THREADS": str(machine.threads),
        "PYTHONUNBUFFERED": "1",
    }
    if machine.gpus:
        first = slot % (len(machine.gpus) // machine.ranks) * machine.ranks
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(machine.gpus[first : first + machine.ranks])
    processes = [
        subprocess.Popen(
            [*command, "--seed", str(trial.seed)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for rank in range(machine.ranks)
    ]
    return LocalJob(trial, slot, processes, log, time.time())


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the rank's whole session; it may have ended a moment ago."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextmanager
def _only_launcher(run: RunDir) -> Iterator[None]:
    try:
        with locked(run.path / ".launcher", wait=False):
            yield
    except BlockingIOError:
        raise UserError(f"another launcher is running trials of {run.path} on this machine; wait for it or stop it") from None


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """An order to stop, to the launcher or to a job that holds several trials, ends its trials as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
