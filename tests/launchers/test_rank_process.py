"""A rank from the warm process is the one that a new process would be; whoever is killed, nothing is lost and nothing stays."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from small import packed_tones, planned, wav2vec2

from ser_hpc.config.load import load_settings
from ser_hpc.launchers import local
from ser_hpc.launchers.detect import Machine
from ser_hpc.launchers.rank_process import RankProcess, RankStarter, libraries_of
from ser_hpc.run.run_dir import RunDir, Trial

MACHINE = Machine(cores=2, gpus=(), slots=1, ranks=1, threads=2)
# What a process can see of how it was started; written to where its first argument says.
SPY = """
import sys
known = {name.partition(".")[0] for name in sys.modules}
import gc, json, os, random, signal, threading
stdin, stdout = os.stat(0), os.stat(1)
handlers = {number.name: str(signal.getsignal(number)) for number in signal.valid_signals() if hasattr(number, "name")}
seen = {
    "arguments": sys.argv, "all_arguments": sys.orig_argv[1:], "path": sys.path, "environment": dict(os.environ),
    "folder": os.getcwd(), "parent": os.getppid(), "leads": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
    "main": [__name__, __spec__.name, sys.modules["__main__"].__dict__ is globals()], "flags": list(sys.flags),
    "files": [stdin.st_rdev, stdout.st_ino, os.fstat(2).st_ino, *(sys.stdout.isatty(), sys.stdout.line_buffering)],
    "handlers": handlers, "mask": list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), "gc": gc.isenabled(),
    "open": sorted(int(name) for name in os.listdir("/proc/self/fd")), "cores": sorted(os.sched_getaffinity(0)),
    "threads": threading.active_count(), "main_thread": threading.current_thread() is threading.main_thread(),
}
drawn = {"python": random.random()}
if "numpy" in known:
    import numpy, torch
    drawn["numpy"] = numpy.random.rand()
    drawn["torch"] = torch.rand(()).item()
    seen["torch"] = [torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork(), torch.get_num_threads()]
open(sys.argv[1], "w").write(json.dumps({"seen": seen, "drawn": drawn, "known": sorted(known)}))
"""
# Ends in the way that its first argument names.
ENDS = """
import atexit, os, signal, sys, threading, time
atexit.register(print, "at exit")
print("begins", flush=True)
def later():
    time.sleep(0.05)
    print("thread", flush=True)
{
    "code": lambda: sys.exit(3),
    "words": lambda: sys.exit("in words"),
    "error": lambda: 1 / 0,
    "at once": lambda: os._exit(7),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "asked": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "interrupted": lambda: os.kill(os.getpid(), signal.SIGINT),
    "thread": lambda: threading.Thread(target=later).start(),
    "end": lambda: None,
}[sys.argv[1]]()
"""
# Its worker is started anew, and finds this module by its name.
SPAWNS = """
import multiprocessing, os, sys
def square(number):
    return number * number, sys.modules["__mp_main__"].__spec__.name
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(square, [3]))
"""
WAITS = """
import pathlib, sys, time
pathlib.Path(sys.argv[1], "begun").touch()
while not pathlib.Path(sys.argv[1], "go").exists():
    time.sleep(0.01)
pathlib.Path(sys.argv[1], "done").touch()
"""
LAUNCHER = """
import os, sys, time
from ser_hpc.launchers.rank_process import RankStarter
with RankStarter(["json"], os.environ, sys.argv[1]) as starter, open(os.devnull, "ab") as log:
    while not starter.is_ready():
        time.sleep(0.01)
    print(starter.start("waits", [sys.argv[1]], {}, log).pid, flush=True)
    time.sleep(600)
"""
MODULES = {"spy": SPY, "ends": ENDS, "spawns": SPAWNS, "waits": WAITS, "broken": "1 / 0", "threaded": ""}
MODULES["threaded"] = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with these modules, from which Python imports."""
    folder = tmp_path_factory.mktemp("warm")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.setenv("OMP_WAIT_POLICY", "passive")  # two threads on a busy machine
        yield folder


@pytest.fixture(scope="module")
def run(base: Path) -> RunDir:
    return planned(base / "runs", packed_tones(base))


@pytest.fixture(scope="module")
def warm(run: RunDir) -> Iterator[RankStarter]:
    """What starts the ranks of that run, with all libraries that it may import; shared: they take seconds."""
    with local._rank_starter(run, MACHINE, {}, num_jobs=2) as starter:
        made_ready(starter)
        yield starter


@pytest.fixture(scope="module")
def cold(run: RunDir) -> RankStarter:
    return local._rank_starter(run, MACHINE, {}, num_jobs=1)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def made_ready(starter: RankStarter) -> None:
    until(starter.is_ready)


def ended(starter: RankStarter, module: str, arguments: Sequence[str], folder: Path, **own: str) -> tuple[int, str]:
    """The exit code and the log of a rank."""
    made_ready(starter)
    with (folder / "log").open("wb") as log:
        code = starter.start(module, arguments, own, log).wait()
    return code, (folder / "log").read_text()


def seen(starter: RankStarter, folder: Path) -> dict[str, Any]:
    code, log = ended(starter, "spy", [str(folder / "seen")], folder, RANK="1", SER_HPC_START="a")
    assert (code, log) == (0, "")
    found: dict[str, Any] = json.loads((folder / "seen").read_text())
    return found


def processes(word: Path, *, name: str = "") -> list[int]:
    """Those that live and have `word` in their arguments, of this name."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_bytes().decode().split("\0")
            if any(str(word) in each for each in words) and name in (path / "comm").read_text():
                found.append(int(path.name))
    return found


def test_a_rank_sees_what_a_new_process_would(warm: RankStarter, cold: RankStarter, base: Path) -> None:
    """Path, variables, arguments, files, signals, threads, generators; and none of our package before it imports its own."""
    one, other, new = seen(warm, base), seen(warm, base), seen(cold, base)
    assert one["seen"].pop("torch") == [False, False, 2]
    assert one["seen"] == new["seen"] and not {"torch", "numpy"} & set(new["known"])
    assert {"torch", "transformers", "pyarrow"} <= set(one["known"]) and not {"ser_hpc", "deepspeed"} & set(one["known"])
    assert all(one["drawn"][name] != other["drawn"][name] for name in ("python", "numpy", "torch"))


def test_the_warm_process_has_one_thread(warm: RankStarter) -> None:
    """OpenBLAS has ended the one that it started at its import (two are allowed), Arrow and OpenMP have started none."""
    assert warm._warm is not None
    assert len([*Path(f"/proc/{warm._warm._process.pid}/task").iterdir()]) == 1


@pytest.mark.parametrize("way", ["code", "words", "error", "at once", "killed", "asked", "interrupted", "thread", "end"])
def test_it_ends_as_a_new_process_would(warm: RankStarter, cold: RankStarter, base: Path, way: str) -> None:
    """The same exit code or signal, and the same log; of an error, the lines below who called whom."""
    expected, log = ended(cold, "ends", [way], base)
    code, own_log = ended(warm, "ends", [way], base)
    assert code == expected and "begins" in log
    below = [[line for line in text.splitlines() if not line.startswith(" ")] for text in (log, own_log)]
    assert below[0] == below[1]


def test_its_worker_processes_find_its_module(warm: RankStarter, base: Path) -> None:
    assert ended(warm, "spawns", [], base) == (0, "[(9, 'spawns')]\n")


def test_a_variable_that_libraries_may_read_at_import_makes_it_start_cold(warm: RankStarter, base: Path) -> None:
    with (base / "log").open("wb") as log:
        for own, is_warm in (({"HF_HOME": "/elsewhere"}, False), ({"CUDA_VISIBLE_DEVICES": "1", "LOCAL_RANK": "1"}, True)):
            rank = warm.start("ends", ["end"], own, log)
            assert rank.wait() == 0 and isinstance(rank, subprocess.Popen) is not is_warm


@pytest.mark.parametrize("binding", ["OMP_PROC_BIND", "GOMP_CPU_AFFINITY"])
def test_it_starts_cold_where_openmp_would_bind_all_ranks_to_one_core(binding: str) -> None:
    assert RankStarter(["json"], os.environ | {binding: "0"}, "").is_ready()


def test_under_zero_ranks_start_cold() -> None:
    settings = load_settings(None, ["data.shards=x"])
    assert "torch" in libraries_of(settings)
    assert not libraries_of(settings.model_copy(update={"train": settings.train.model_copy(update={"strategy": "zero2"})}))


@pytest.mark.parametrize("library", ["broken", "threaded", "ser_hpc"])
def test_what_cannot_be_forked_starts_cold(base: Path, library: str) -> None:
    """A library that fails, as the trials will say; that leaves a thread, whose locks a fork would inherit; that brings along
    the package, which may be other code than the run's."""
    with RankStarter([library], os.environ, "") as starter, (base / "log").open("wb") as log:
        made_ready(starter)
        assert isinstance(rank := starter.start("ends", ["code"], {}, log), subprocess.Popen)
        assert rank.wait() == 3


def test_killed_it_takes_no_rank_with_it(base: Path, tmp_path: Path) -> None:
    """The rank that runs ends as if nothing were; the next comes from another warm process."""
    with RankStarter(["json"], os.environ, str(tmp_path)) as starter, (base / "log").open("wb") as log:
        made_ready(starter)
        rank = starter.start("waits", [str(tmp_path)], {}, log)
        until((tmp_path / "begun").exists)
        assert starter._warm is not None
        os.kill(first := starter._warm._process.pid, signal.SIGKILL)
        until(lambda: starter._warm is None or starter._warm.state() == "ended")
        assert rank.poll() is None
        made_ready(starter)
        (tmp_path / "go").touch()
        assert rank.wait() == 0 and starter._warm._process.pid != first
        assert not isinstance(again := starter.start("ends", ["code"], {}, log), subprocess.Popen)
        assert again.wait() == 3
    assert not processes(tmp_path)


def test_a_launcher_that_is_killed_leaves_ranks_to_end_and_nothing_else(base: Path, tmp_path: Path) -> None:
    """As of old: they go on to their end. The warm process does not stay."""
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    rank = int(launcher.stdout.readline())
    until((tmp_path / "begun").exists)
    launcher.kill()
    launcher.communicate()
    until(lambda: processes(tmp_path) == [rank])
    (tmp_path / "go").touch()
    until(lambda: not processes(tmp_path))
    assert (tmp_path / "done").exists()


def results(run: RunDir, *trials: Trial) -> dict[str, str]:
    """Digests of what trials left: weights, checkpoints, losses and predictions."""
    found = {}
    for trial in trials:
        for path in sorted(run.trial(trial).current.path.rglob("*")):
            if path.suffix == ".safetensors" or path.name == "predictions.jsonl":
                found[f"{trial} {path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_trials_are_those_of_cold_starts_bit_for_bit(
    base: Path, run: RunDir, warm: RankStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And do not notice that the warm process is killed as they run."""
    with monkeypatch.context() as patch:
        patch.setattr(local, "_rank_starter", lambda *_: nullcontext(warm))
        started: list[RankProcess] = []

        def kill_the_warm_process(jobs: Sequence[local.LocalJob]) -> None:
            started.extend(process for job in jobs for process in job.processes if process not in started)
            if started and warm._warm is not None:
                os.kill(warm._warm._process.pid, signal.SIGKILL)

        assert local.run_trials(run, [Trial(0, 0)], MACHINE, kill_the_warm_process) == {Trial(0, 0): 0}
    assert len(started) == 1 and not isinstance(started[0], subprocess.Popen)
    other = planned(base / "cold", packed_tones(base))
    assert local.run_trials(other, [Trial(0, 0)], MACHINE, started.extend) == {Trial(0, 0): 0}
    assert isinstance(started[-1].processes[0], subprocess.Popen)  # type: ignore[attr-defined]
    assert len(mine := results(run, Trial(0, 0))) >= 2 and mine == results(other, Trial(0, 0))


@pytest.mark.slow
def test_killed_at_twenty_random_moments_nothing_is_lost_and_nothing_stays(base: Path, tmp_path: Path) -> None:
    """Launcher, warm process or a trial's rank, each time started again where it was: the results of an undisturbed run."""
    dice = random.Random(0)
    training = ("train.epochs=25", "train.checkpoint_minutes=0.0001", "model.dropout=0.1")

    def launch(root: Path) -> subprocess.Popen[bytes]:
        words = [*(f"run.root={root}", f"data.shards={packed_tones(base)}", "model.weights=null"), *training]
        words += [f"model.config={wav2vec2()}", "train.global_batch=16", "folds.protocol=speaker_groups", "--folds", "3"]
        command = [sys.executable, "-m", "ser_hpc.launch", "--cluster", "local", "--gpus-per-node", "1", *words]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def disturb(root: Path, kills: int) -> int:
        """Launch until all is done, killing at most so often; how often it was."""
        done, launcher = 0, launch(root)
        while (code := launcher.poll()) != 0:
            if code is not None:
                launcher = launch(root)
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(dice.uniform(0.5, 10) if done < kills else None)
            ranks = processes(root, name="ser_hpc.train")
            others = [pid for pid in processes(root, name="python") if pid != launcher.pid]
            if done < kills and launcher.poll() is None and (victims := dice.choice([[launcher.pid], ranks, others])):
                done += 1
                with suppress(ProcessLookupError):
                    os.kill(dice.choice(victims), signal.SIGKILL)
        return done

    def weights(root: Path) -> dict[Trial, bytes]:
        (run,) = (RunDir(path) for path in root.iterdir())
        return {trial: run.trial(trial).weights.read_bytes() for trial in run.trials()}

    disturb(tmp_path / "whole", kills=0)
    left = 20
    while left:
        left -= (kills := disturb(root := tmp_path / f"disturbed-{left}", left))
        assert kills and weights(root) == weights(tmp_path / "whole")
        until(lambda root=root: not processes(root))  # type: ignore[misc]
