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
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO

from ser_hpc.config.load import load_run_settings
from ser_hpc.config.settings import Settings
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
    """The ranks of a trial, or of several that they train one after another.

    `started`: epoch seconds; `exit_code`: None while they run, then a failure's, or 0; `marks`: how the names of files begin
    that they write into about each trial (`start_marks`). Of the trials: `begun`; `came_further` than ever; `codes`, the exit
    codes of those that have ended.
    """

    trials: tuple[Trial, ...]
    slot: int
    processes: list[RankProcess]
    log: IO[bytes]
    started: float
    exit_code: int | None = None
    codes: dict[Trial, int] = field(default_factory=dict)
    marks: Path = Path("none")
    begun: set[Trial] = field(default_factory=set)
    came_further: set[Trial] = field(default_factory=set)
    stop_requested: bool = False

    @property
    def current(self) -> Trial:
        """Return the trial that is under way, or is next; the last, if all have ended. One that another launcher has completed
        is never begun."""
        left = [trial for trial in self.trials if trial not in self.codes]
        return next((trial for trial in left if trial in self.begun), (left or self.trials[-1:])[0])

    def poll(self) -> int | None:
        """Return the job's exit code, None while it runs; when one rank has failed, kill the others."""
        codes = [process.poll() for process in self.processes]
        failed = next((code for code in codes if code not in (None, 0)), None)
        if failed is not None and not self.stop_requested:
            self.kill()  # its fellows would wait for it in a collective
            codes = [process.poll() for process in self.processes]
        self._read_marks()
        if all(code is not None for code in codes):
            self.exit_code = CANNOT_GO_ON if CANNOT_GO_ON in codes else failed or 0
            # What ended them befell the trial under way; none, where it is between two of them.
            if self.current not in self.codes and (self.current in self.begun or not self.codes):
                self.codes[self.current] = self.exit_code
            self.log.close()
            self._remove_marks()
        return self.exit_code

    def _read_marks(self) -> None:
        """Take in what the ranks have written about each trial that has not ended: its end first, for nothing follows that."""
        for trial in [trial for trial in self.trials if trial not in self.codes]:
            mark, final = self._files(trial)
            with suppress(OSError, ValueError):
                self.codes[trial] = int(final.read_text(encoding="utf-8"))
            with suppress(OSError):
                further = mark.stat().st_size > 0
                self.begun.add(trial)
                if further and trial not in self.came_further:
                    self.came_further.add(trial)
                    start_marks.mark_progress()  # where this is a job of several trials, its batch script is told as well

    def _files(self, trial: Trial) -> tuple[Path, Path]:
        return Path(start_marks.of_trial(f"{self.marks}.mark", trial)), Path(start_marks.of_trial(f"{self.marks}.final", trial))

    def _remove_marks(self) -> None:
        for path in self.marks.parent.glob(f"{self.marks.name}.*"):
            path.unlink(missing_ok=True)

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
    per_job: int = 1,
    max_starts: int = 3,
    report: Callable[[str], None] = _print_line,
    ranks: RankStarter | None = None,
) -> dict[Trial, int]:
    """Run every trial, as many at a time as there are slots; returns their exit codes. `on_poll` sees each trial's last job.

    `per_job`: of so many trials at most that wait, a slot's processes train one after another; 1: each has processes of its
    own.
    What was killed, or failed in a way that another attempt may get over, is started again, until `max_starts` starts in a row
    have come no further: then its exit code is CANNOT_GO_ON. After one failed for a reason that all share, no other is started,
    and those have no exit code. `environment`: more variables; `ranks`: what starts the ranks of several runs, under the same.
    `alone`: no other launcher may run trials of this run on this machine; jobs that hold several trials each are many.
    Ctrl-C and its like: the ranks save and end, within a minute, and what is being waited for is said, each time.

    Raises UserError if another launcher runs trials of this run, KeyboardInterrupt after everything is ended.
    """
    waiting, free = _deal(trials, machine.slots, per_job), list(range(machine.slots))
    jobs: list[LocalJob] = []
    in_vain: dict[Trial, int] = {}  # starts in a row
    more = {"SER_HPC_LAUNCH": uuid.uuid4().hex, **(environment or {})}
    with (
        only_launcher(run, trials) if alone else nullcontext(),
        _counted_signals() as signals,
        nullcontext(ranks) if ranks else _rank_starter(run, machine, more, len(waiting)) as starter,
    ):
        try:
            while waiting or any(job.exit_code is None for job in jobs):
                while waiting and free and starter.is_ready():
                    jobs.append(_start(run, waiting.pop(0), free.pop(0), machine, starter))
                time.sleep(_POLL_S)
                if signals:
                    raise KeyboardInterrupt
                for job in [job for job in jobs if job.exit_code is None]:
                    if job.poll() is not None:
                        free.append(job.slot)
                        again = _unfinished(run, job, in_vain, max_starts, report)
                        if any(_fails_for_all(run.trial(trial)) for trial in job.codes if job.codes[trial] == CANNOT_GO_ON):
                            waiting.clear()
                        elif again:
                            waiting.insert(0, again)
                            job.trials = tuple(trial for trial in job.trials if trial not in again)
                on_poll(jobs)
        finally:
            _stop([job for job in jobs if job.exit_code is None], signals, report)
    return {trial: code for job in jobs for trial, code in job.codes.items()}


def _deal(trials: Sequence[Trial], slots: int, per_job: int) -> list[tuple[Trial, ...]]:
    """Divide trials into those of each job, as evenly as can be, over all slots; the seeds of a fold to one, if they fit: what
    their process has found out about the fold once it need not again."""
    if per_job == 1:
        return [(trial,) for trial in trials]
    count = min(len(trials), max(slots, -(-len(trials) // per_job)))
    by_fold = sorted(trials, key=lambda trial: trial.fold)
    bounds = [len(trials) * number // count for number in range(count + 1)]
    jobs = [set(by_fold[start:end]) for start, end in pairwise(bounds)]
    return [tuple(trial for trial in trials if trial in job) for job in jobs]


def _unfinished(
    run: RunDir, job: LocalJob, in_vain: dict[Trial, int], max_starts: int, report: Callable[[str], None]
) -> tuple[Trial, ...]:
    """Return which trials of a job that has ended are to be started again, and drop their exit codes; give up on one that
    makes no progress."""
    for trial, code in job.codes.items():
        in_vain[trial] = 0 if trial in job.came_further else in_vain.get(trial, 0) + 1
        if code not in FINAL and in_vain[trial] >= max_starts:
            reason = _failure_reason(run, trial, code)
            report(f"{trial}: given up after {max_starts} starts in a row without a new step: {reason}")
            job.codes[trial] = CANNOT_GO_ON
    job.codes = {trial: code for trial, code in job.codes.items() if code in FINAL}
    return tuple(trial for trial in job.trials if trial not in job.codes)


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
                    report(
                        f"{message}: {listed([job.current for job in running])}; what is not done in {left:.0f} s is killed."
                    )
                message = "Ranks are still saving"
            time.sleep(_POLL_S)
            running = [job for job in running if job.poll() is None]
    finally:
        for job in running:
            job.kill()
            job.poll()


def _failure_reason(run: RunDir, trial: Trial, code: int) -> str:
    attempt = run.trial(trial).newest
    error = read_end(attempt).error if attempt is not None else None
    return error or f"exit code {code}; see {log_path(run, trial)}"


def log_path(run: RunDir, trial: Trial) -> Path:
    """Return the log of all the trial's starts on this machine."""
    return run.jobs / f"seed_{trial.seed}-fold_{trial.fold}.log"


def warm_ranks(settings: Settings, machine: Machine, more: Mapping[str, str], about: str) -> RankStarter:
    """Make what starts the ranks of several runs with settings such as these, from one process that has the imports. `more`:
    variables beside what is inherited; `about`: said in the list of processes."""
    more = {"SER_HPC_LAUNCH": uuid.uuid4().hex, **more}
    return RankStarter(libraries_of(settings), _environment(machine, more), about)


def _rank_starter(run: RunDir, machine: Machine, more: Mapping[str, str], num_jobs: int) -> RankStarter:
    """Make what starts the ranks: warm, if there are several of them. `more`: variables beside what is inherited."""
    libraries: Sequence[str] = ()
    if num_jobs * machine.ranks > 1:
        with suppress(UserError):  # the trials will say it
            libraries = libraries_of(load_run_settings(run.settings))
    return RankStarter(libraries, _environment(machine, more), about=str(run.path))


def _environment(machine: Machine, more: Mapping[str, str]) -> dict[str, str]:
    """Return what the ranks have in common."""
    inherited = {name: value for name, value in os.environ.items() if name not in (*LAUNCHER_VARIABLES, start_marks.FINAL_LINE)}
    environment = {**inherited, **more} | {
        "WORLD_SIZE": str(machine.ranks),
        "LOCAL_WORLD_SIZE": str(machine.ranks),
        "SER_HPC_TRIALS_HERE": str(machine.slots),
        THREADS: str(machine.threads),
        "PYTHONUNBUFFERED": "1",
    }
    prepare_allocator(environment)
    return environment


def _start(run: RunDir, trials: tuple[Trial, ...], slot: int, machine: Machine, ranks: RankStarter) -> LocalJob:
    run.jobs.mkdir(parents=True, exist_ok=True)
    first, *others = trials
    log = log_path(run, first).open("ab")  # of several trials, what is said of each goes to its own
    which = ["--trial", *(f"{trial.seed}:{trial.fold}" for trial in trials)]
    if not others:  # as earlier versions of the run's code know it
        which = ["--fold", str(first.fold), "--seed", str(first.seed)]
    start = uuid.uuid4().hex
    marks = run.jobs / f".{start}"
    files = {start_marks.MARK: f"{marks}.mark", start_marks.FINAL_LINE: f"{marks}.final"}
    if not others:
        files = {name: start_marks.of_trial(path, first) for name, path in files.items()}
    own = {"SER_HPC_START": start, "SER_HPC_LOG": str(log_path(run, first)), **files}
    if machine.gpus:
        gpu = slot % (len(machine.gpus) // machine.ranks) * machine.ranks
        own["CUDA_VISIBLE_DEVICES"] = ",".join(machine.gpus[gpu : gpu + machine.ranks])
    job = LocalJob(trials, slot, [], log, time.time(), marks=marks)
    try:
        for rank in range(machine.ranks):
            of_rank = own | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            job.processes.append(ranks.start("ser_hpc.train", ["--run-dir", str(run.path), *which], of_rank, log))
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
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # inherited: of ended ranks the kernel would keep no exit code
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
