"""Run trials on this machine, without Slurm: a queue with slots, honest exit codes, and nothing left running.

Each rank is a process in a session of its own, so that a Ctrl-C in the terminal reaches the launcher alone, which asks the
ranks to stop (they save, and the same command goes on later) and ends what does not. Signals are only counted, and looked at
between two looks at the ranks: no order to stop, be it the third, can come between a rank's start and the list it is kept in.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ser_hpc.config.load import load_run_settings
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.core.cores import THREADS
from ser_hpc.core.errors import UserError, listed
from ser_hpc.launchers.detect import Machine
from ser_hpc.launchers.foreground import only_launcher
from ser_hpc.launchers.rank_process import RankProcess, RankStarter, libraries_of
from ser_hpc.run import start_marks
from ser_hpc.run.attempt import CANNOT_GO_ON, SUPERSEDED
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.rank import LAUNCHER_VARIABLES, prepare_allocator
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir

FINAL = (0, CANNOT_GO_ON, SUPERSEDED)  # exit codes after which a trial is not started again
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)  # HUP: its terminal is closed
_POLL_S = 0.2
_GRACE_S = 60.0


@dataclass(slots=True)
class LocalJob:
    """One trial's ranks. `started`: epoch seconds; `exit_code`: None while they run, then a failure's, or 0; `mark`: the file
    that they write into when the trial comes further than ever; `came_further`: whether they had, at the end."""

    trial: Trial
    slot: int
    processes: list[RankProcess]
    log: IO[bytes]
    started: float
    exit_code: int | None = None
    mark: Path | None = None
    came_further: bool = False
    stop_requested: bool = False

    def poll(self) -> int | None:
        """Return the job's exit code, None while it runs; when one rank has failed, kill the others."""
        codes = [process.poll() for process in self.processes]
        failed = next((code for code in codes if code not in (None, 0)), None)
        if failed is not None and not self.stop_requested:
            self.kill()  # its fellows would wait for it in a collective
            codes = [process.poll() for process in self.processes]
        if all(code is not None for code in codes):
            self.exit_code = CANNOT_GO_ON if CANNOT_GO_ON in codes else failed or 0
            self.log.close()
            if self.mark is not None and self.mark.exists():
                self.came_further = self.mark.stat().st_size > 0
                self.mark.unlink()
            if self.came_further:
                start_marks.mark_progress()  # where this is a job of several trials, its batch script is told as well
        return self.exit_code

    def request_stop(self) -> None:
        self.stop_requested = True
        for process in self.processes:
            _signal(process, signal.SIGTERM)

    def kill(self) -> None:
        """Kill whatever is left of it, its ranks' own children too."""
        for process in self.processes:
            _signal(process, signal.SIGKILL)
            process.wait()


def _print_line(line: str) -> None:
    print(line, flush=True)


def run_trials(
    run: RunDir,
    trials: Sequence[Trial],
    machine: Machine,
    on_poll: Callable[[Sequence[LocalJob]], None],
    environment: Mapping[str, str] | None = None,
    *,
    alone: bool = True,
    max_starts: int = 3,
    report: Callable[[str], None] = _print_line,
) -> dict[Trial, int]:
    """Run every trial, as many at a time as there are slots; returns their exit codes. `on_poll` sees each trial's last job.

    What was killed, or failed in a way that another attempt may get over, is started again, until `max_starts` starts in a row
    have come no further: then its exit code is CANNOT_GO_ON. After one failed for a reason that all share, no other is started,
    and those have no exit code. `environment`: more variables.
    `alone`: no other launcher may run trials of this run on this machine; jobs that hold several trials each are many.
    Ctrl-C and its like: the ranks save and end, within a minute, and what is being waited for is said, each time.

    Raises UserError if another launcher runs trials of this run, KeyboardInterrupt after everything is ended.
    """
    waiting, free = list(trials), list(range(machine.slots))
    jobs: list[LocalJob] = []
    in_vain: dict[Trial, int] = {}  # starts in a row
    more = {"SER_HPC_LAUNCH": uuid.uuid4().hex, **(environment or {})}
    with (
        only_launcher(run, trials) if alone else nullcontext(),
        _counted_signals() as signals,
        _rank_starter(run, machine, more, len(trials)) as ranks,
    ):
        try:
            while waiting or any(job.exit_code is None for job in jobs):
                while waiting and free and ranks.is_ready():
                    jobs.append(_start(run, waiting.pop(0), free.pop(0), machine, ranks))
                time.sleep(_POLL_S)
                if signals:
                    raise KeyboardInterrupt
                for job in [job for job in jobs if job.exit_code is None]:
                    if job.poll() is not None:
                        free.append(job.slot)
                        in_vain[job.trial] = 0 if job.came_further else in_vain.get(job.trial, 0) + 1
                        if job.exit_code not in FINAL and in_vain[job.trial] >= max_starts:
                            reason = _failure_reason(run, job)
                            report(f"{job.trial}: given up after {max_starts} starts in a row without a new step: {reason}")
                            job.exit_code = CANNOT_GO_ON
                        if job.exit_code not in FINAL:
                            waiting.insert(0, job.trial)
                            jobs.remove(job)
                        elif job.exit_code == CANNOT_GO_ON and _fails_for_all(run.trial(job.trial)):
                            waiting.clear()
                on_poll(jobs)
        finally:
            _stop([job for job in jobs if job.exit_code is None], signals, report)
    return {job.trial: job.exit_code or 0 for job in jobs}


def _fails_for_all(place: TrialDir) -> bool:
    """Return whether the run's other trials would end in the same error as this one, which has failed for good."""
    return place.newest is not None and read_end(place.newest).shared


def _stop(running: list[LocalJob], signals: Sequence[int], report: Callable[[str], None]) -> None:
    """Ask these to save and end, wait, and kill what is left; report what it waits for, and again at each further signal."""
    for job in running:
        job.request_stop()
    deadline, reported = awake_s() + _GRACE_S, 0
    message = "Stopping: asked to save and end"
    try:
        while running and (left := deadline - awake_s()) > 0:
            if reported < max(1, len(signals)):
                reported = max(1, len(signals))
                with suppress(OSError):  # nobody listens any more
                    report(f"{message}: {listed([job.trial for job in running])}; what is not done in {left:.0f} s is killed.")
                message = "Ranks are still saving"
            time.sleep(_POLL_S)
            running = [job for job in running if job.poll() is None]
    finally:
        for job in running:
            job.kill()
            job.poll()


def _failure_reason(run: RunDir, job: LocalJob) -> str:
    attempt = run.trial(job.trial).newest
    error = read_end(attempt).error if attempt is not None else None
    return error or f"exit code {job.exit_code}; see {log_path(run, job.trial)}"


def log_path(run: RunDir, trial: Trial) -> Path:
    """Return the log of all the trial's starts on this machine."""
    return run.jobs / f"seed_{trial.seed}-fold_{trial.fold}.log"


def _rank_starter(run: RunDir, machine: Machine, more: Mapping[str, str], num_trials: int) -> RankStarter:
    """Make what starts the ranks: warm, if there are several of them. `more`: variables beside what is inherited."""
    inherited = {name: value for name, value in os.environ.items() if name not in (*LAUNCHER_VARIABLES, start_marks.FINAL_LINE)}
    environment = {**inherited, **more} | {
        "WORLD_SIZE": str(machine.ranks),
        "LOCAL_WORLD_SIZE": str(machine.ranks),
        "SER_HPC_TRIALS_HERE": str(machine.slots),
        THREADS: str(machine.threads),
        "PYTHONUNBUFFERED": "1",
    }
    prepare_allocator(environment)
    libraries: Sequence[str] = ()
    if num_trials * machine.ranks > 1:
        with suppress(UserError):  # the trials will say it
            libraries = libraries_of(load_run_settings(run.settings))
    return RankStarter(libraries, environment, about=str(run.path))


def _start(run: RunDir, trial: Trial, slot: int, machine: Machine, ranks: RankStarter) -> LocalJob:
    run.jobs.mkdir(parents=True, exist_ok=True)
    log = log_path(run, trial).open("ab")
    arguments = ["--run-dir", str(run.path), "--fold", str(trial.fold), "--seed", str(trial.seed)]
    start = uuid.uuid4().hex
    mark = run.jobs / f".mark-{start}"
    own = {"SER_HPC_START": start, start_marks.MARK: str(mark), "SER_HPC_LOG": str(log_path(run, trial))}
    if machine.gpus:
        first = slot % (len(machine.gpus) // machine.ranks) * machine.ranks
        own["CUDA_VISIBLE_DEVICES"] = ",".join(machine.gpus[first : first + machine.ranks])
    job = LocalJob(trial, slot, [], log, time.time(), mark=mark)
    try:
        for rank in range(machine.ranks):
            of_rank = own | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            job.processes.append(ranks.start("ser_hpc.train", arguments, of_rank, log))
    except BaseException:
        job.kill()
        raise
    return job


def _signal(process: RankProcess, number: signal.Signals) -> None:
    """Signal the rank's whole session; it may have ended a moment ago."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextmanager
def _counted_signals() -> Iterator[Sequence[int]]:
    """Yield the signals to stop that come to the launcher, or to a job that holds several trials: one list, which grows."""
    received: list[int] = []
    # What is ignored stays so: a shell has it that way for what it starts in the background.
    numbers = [number for number in _STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
