"""Restarts: an older attempt writes over nothing, what fails for ever is not tried for ever, what hangs says where."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from ranks import Started
from small import packed_tones, planned, run_here
from torch import nn

from ser_hpc.config.settings import TrainSettings
from ser_hpc.core.atomic_io import read_json
from ser_hpc.core.errors import UserError
from ser_hpc.engine.distributed import build
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.fault.checkpoint import TrainState
from ser_hpc.engine.progress import Progress
from ser_hpc.launchers import local
from ser_hpc.launchers.detect import Machine
from ser_hpc.run import attempt as attempts
from ser_hpc.run import snapshot, start_marks
from ser_hpc.run.attempt import CANNOT_GO_ON, SUPERSEDED
from ser_hpc.run.attempt_end import read_end
from ser_hpc.run.rank import Rank
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir

TRIAL = Trial(0, 0)
SLOWLY = ("train.epochs=6", "train.checkpoint_minutes=0.0001")
# Rank 1 (rank 0 if alone) does WHAT at its fourth step.
AT_STEP_3 = """
import os, sys, time
from ser_hpc.core import cli as console
from ser_hpc import train
from ser_hpc.engine import loop
def learning_rate(step, *rest, real=loop.learning_rate):
    if step == 3 and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        WHAT
    return real(step, *rest)
loop.learning_rate = learning_rate
console.run_main(train.main)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attempts")


def start(run: RunDir, program: str | None = None, ranks: int = 1, late_s: float = 0.0, **environment: str) -> list[Started]:
    """`late_s`: so much later than the others rank 0 starts."""
    environment = os.environ | {"WORLD_SIZE": str(ranks), "SER_HPC_START": "one"} | environment
    processes = []
    for rank in reversed(range(ranks)):
        time.sleep(0 if rank else late_s)
        arguments = ["--run-dir", str(run.path), "--fold", "0"]
        processes.append(Started("ser_hpc.train", arguments, environment | {"RANK": str(rank)}, program))
    return processes[::-1]


def wait_for_checkpoint(trial: TrialDir, process: Started | None = None) -> None:
    deadline = time.monotonic() + 120
    while not list(trial.path.glob("attempt_*/checkpoints/step_*.json")):
        assert time.monotonic() < deadline and (process is None or process.poll() is None), "no checkpoint came"
        time.sleep(0.01)


def test_an_older_attempt_that_wakes_up_writes_over_nothing(base: Path) -> None:
    """Frozen in the middle (as on a node that was lost), overtaken, and thawed: it ends, and no file of the trial changes."""
    run = planned(base / "overtaken", packed_tones(base), *SLOWLY)
    trial = run.trial(TRIAL)
    (old,) = start(run)
    wait_for_checkpoint(trial, old)
    old.send_signal(signal.SIGSTOP)
    assert run_here(run, TRIAL) == {TRIAL: 0}
    mine = trial.attempt(1).path
    before = {path: path.read_bytes() for path in trial.path.rglob("*") if path.is_file() and mine not in path.parents}
    old.send_signal(signal.SIGCONT)
    output, _ = old.communicate(timeout=120)
    assert old.returncode == 3 and "newer attempt" in output
    assert read_json(trial.done)["attempt"] == 2 and read_end(trial.attempt(1)).outcome == "superseded"
    after = {path: path.read_bytes() for path in trial.path.rglob("*") if path.is_file() and mine not in path.parents}
    assert before == after


def test_whatever_befalls_an_overtaken_attempt_it_is_superseded(base: Path) -> None:
    """As when a newer one has dropped its checkpoints: no failure of the trial's, and not to be started again."""
    run = planned(base / "befallen", packed_tones(base))
    newer = "(__import__('pathlib').Path(sys.argv[2]) / 'seed_0/fold_0/attempt_0002').mkdir()"
    (process,) = start(run, AT_STEP_3.replace("WHAT", f"{newer}; raise RuntimeError('my files are gone')"))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == SUPERSEDED, output
    assert read_end(run.trial(TRIAL).attempt(1)).outcome == "superseded"


def test_a_killed_rank_is_started_again_here(base: Path) -> None:
    """The local launcher: SIGKILL of one of two ranks; the trial goes on by itself and ends as if nothing had been."""
    whole, killed = (planned(base / name, packed_tones(base), *SLOWLY) for name in ("whole", "killed"))
    assert run_here(whole, TRIAL, ranks=2) == {TRIAL: 0}

    def kill_one() -> None:
        wait_for_checkpoint(killed.trial(TRIAL))
        os.kill(read_json(killed.trial(TRIAL).attempt(1).attempt)["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert run_here(killed, TRIAL, ranks=2) == {TRIAL: 0}
    killer.join()
    ours, theirs = killed.trial(TRIAL), whole.trial(TRIAL)
    assert len(ours.attempts) == 2 and len(theirs.attempts) == 1
    assert ours.current.steps.read_bytes() == theirs.current.steps.read_bytes()
    assert ours.current.predictions.read_bytes() == theirs.current.predictions.read_bytes()


def test_a_package_that_is_not_installed_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP on one machine needs neither DeepSpeed nor submitit: an attempt and a snapshot are described all the same."""
    version = metadata.version

    def installed(name: str) -> str:
        if name in ("deepspeed", "submitit"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", installed)
    attempt = attempts.claim_attempt(TrialDir(tmp_path / "seed_0" / "fold_0", TRIAL), Rank(0, 1, 0, 1))
    origin = read_json(snapshot.take_snapshot(RunDir(tmp_path)).path / "origin.json")
    for versions in (read_json(attempt.attempt)["versions"], origin["versions"]):
        assert versions["deepspeed"] is versions["submitit"] is None and versions["torch"] == version("torch")


def test_zero_without_deepspeed_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.strategy=zero2 needs DeepSpeed.*use ddp"):
        build.build_strategy(
            nn.Linear(2, 2), TrainSettings(strategy="zero2", precision="fp32"), World(0, 1, 0, 1, torch.device("cpu")), None
        )


def test_what_comes_no_further_is_given_up(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here as on Slurm: three starts after the one that came to that step; its error is the trial's."""
    run = planned(base / "failing", packed_tones(base))
    program = base / "python"
    fire = AT_STEP_3.replace("WHAT", "raise RuntimeError('the device is on fire')")
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.argv[1:3] = []{fire}")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    machine = Machine(cores=2, gpus=(), slots=1, ranks=1, threads=1)
    assert local.run_trials(run, [TRIAL], machine, lambda jobs: None) == {TRIAL: CANNOT_GO_ON}
    assert [read_end(attempt).step for attempt in run.trial(TRIAL).attempts] == [3] * 4
    said = "seed 0 fold 0: given up after 3 starts in a row without a new step: RuntimeError: the device is on fire"
    assert said in capsys.readouterr().out
    assert not list(run.jobs.glob(".mark-*"))


@pytest.mark.parametrize("argument", ["", "--trial 9", "--nonsense"], ids=["done", "no such trial", "argparse"])
def test_every_final_end_is_told_to_the_batch_script(base: Path, argument: str) -> None:
    """Not by its exit code alone: a node without Python has the same."""
    run = planned(base / "final", packed_tones(base), "train.epochs=1")
    told = {name: str(base / f"{name}-{argument}") for name in (start_marks.FINAL_LINE, start_marks.MARK)}
    command = [sys.executable, "-m", "ser_hpc.train", "--run-dir", str(run.path), *(argument.split() or ["--trial", "0"])]
    code = subprocess.run(command, env=os.environ | told, capture_output=True).returncode
    assert code == (2 if argument else 0) and Path(told[start_marks.FINAL_LINE]).read_text() == str(code)
    assert Path(told[start_marks.MARK]).read_text() == ("" if argument else "further")


def test_what_another_start_may_get_over_is_no_last_word(base: Path) -> None:
    run = planned(base / "open", packed_tones(base))
    told = {name: str(base / f"open-{name}") for name in (start_marks.FINAL_LINE, start_marks.MARK)}
    (process,) = start(run, AT_STEP_3.replace("WHAT", "raise RuntimeError('no luck')"), **told)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and not Path(told[start_marks.FINAL_LINE]).exists(), output
    assert Path(told[start_marks.MARK]).read_text() == "further"


@pytest.mark.slow
def test_a_hang_prints_every_ranks_stacks_and_asks_for_another_attempt(base: Path) -> None:
    """One rank sleeps, the other waits for it in a collective: both say where, and both end."""
    run = planned(base / "hanging", packed_tones(base), "train.hang_minutes=0.5")
    processes = start(run, AT_STEP_3.replace("WHAT", "time.sleep(1000)"), ranks=2)
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert all("nothing happened for 30 s" in output and "train_trial" in output for output in outputs)
    assert "in learning_rate" in outputs[1]
    end = read_end(run.trial(TRIAL).attempt(1))
    assert end.outcome == "hung"


def test_rank_0_may_be_the_last_to_come(base: Path) -> None:
    """It makes the trial's folder; a rank on another node may be there long before."""
    run = planned(base / "late", packed_tones(base), "train.epochs=1")
    processes = start(run, ranks=2, late_s=8.0)
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs


def test_a_start_that_comes_further_than_any_before_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New steps and scored epochs; steps made again are none. A stop has saved what the next start goes on from."""
    trial, mark = TrialDir(tmp_path, TRIAL), tmp_path / "mark"
    monkeypatch.setenv(start_marks.MARK, str(mark))

    def told(begins: TrainState, *tells: tuple[str, TrainState]) -> bool:
        mark.unlink(missing_ok=True)
        attempt = attempts.claim_attempt(trial, Rank(0, 1, 0, 1))
        with Progress(attempt, None, begins, total_steps=100, epochs=10, active=True) as progress:
            for what, state in tells:
                progress.write(what, state)
        return mark.exists()

    at = {step: TrainState(step=step) for step in (0, 5, 7, 9)}
    assert not told(at[0])
    assert told(at[0], ("training", at[7]))
    assert not told(at[0], ("training", at[5]), ("failed", at[7]))
    assert told(at[0], ("stopped", at[5]))
    assert not told(at[5], ("stopped", at[5]))
    assert told(at[5], ("training", replace(at[7], epoch=1)))
    assert not told(replace(at[7], epoch=1), ("predicting", replace(at[7], epoch=1)))
    assert told(at[5], ("training", replace(at[9], epoch=1)))


def test_numbers_of_attempts_are_never_given_twice(tmp_path: Path) -> None:
    """Many at once, as when two copies of a requeued job start."""
    trial = TrialDir(tmp_path / "trial", TRIAL)
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.extend(trial.claim().number for _ in range(20))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 161))
    assert [attempt.number for attempt in trial.attempts if attempt.is_superseded] == list(range(1, 160))


def test_an_attempt_says_which_start_of_its_job_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which status tells a start that has not come so far from one that is silent. A launcher's trial has no job."""
    for name in ("SER_HPC_LAUNCH", "SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    trial, told = TrialDir(tmp_path / "seed_0" / "fold_0", TRIAL), []
    for name, value in (("SER", ""), ("SLURM_RESTART_COUNT", "2"), ("SER_HPC_LAUNCH", "x")):
        monkeypatch.setenv(name, value)
        about = read_json(attempts.claim_attempt(trial, Rank(0, 1, 0, 1)).attempt)
        told.append((about["job"], about["restart"]))
    assert told == [("7", 0), ("7", 2), (None, None)]
