"""Runs as the launcher and its jobs leave them, without any of them, and a Slurm that says what a test has it say."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ser_hpc import status
from ser_hpc.core.atomic_io import write_json, write_text
from ser_hpc.launchers.slurm import jobs
from ser_hpc.launchers.slurm import queue as slurm_queue
from ser_hpc.launchers.slurm.queue import SlurmError
from ser_hpc.launchers.slurm.submissions import Submission, record_submission
from ser_hpc.run.run_dir import RunDir, Trial

MIN = 60.0


class MadeRun:
    """A run directory of `seeds` x 5 folds as the launcher and its jobs leave it, without any of them."""

    def __init__(self, path: Path, seeds: int = 3) -> None:
        self.run = RunDir(path)
        self.trials = [Trial(seed, fold) for seed in range(seeds) for fold in range(5)]
        write_json(self.run.plan, {"trials": [{"seed": t.seed, "fold": t.fold} for t in self.trials]})
        write_text(self.run.settings, "train: {hang_minutes: 30}\n")

    def submit(self, array: str = "123", trials: Sequence[Trial] | None = None, ago: float = 200) -> None:
        """`ago`: minutes."""
        elements = {number: (trial,) for number, trial in enumerate(self.trials if trials is None else trials)}
        when = time.time() - ago * MIN
        record_submission(self.run, Submission("trials", "ser-x", when, elements, job=array, user=0))
        record_submission(self.run, Submission("report", "report-x", when, job=str(int(array) + 1), user=0))

    def attempt(
        self,
        number: int,
        *,
        began: float,
        until: float = 0.0,
        job: bool = True,
        node: str = "n1",
        state: str = "training",
        end: str | None = None,
        error: str | None = None,
        step: int = 400,
        uar: float | None = 0.5,
        left: float | None = 1800.0,
        log: Sequence[str] = (),
        pid: int = 1,
        array: str = "123",
        restart: int | None = None,
    ) -> None:
        """Another attempt of the `number`-th trial: it began `began` minutes ago and wrote last `until` minutes ago."""
        trial = self.trials[number - 1]
        attempt = self.run.trial(trial).claim()
        name = f"{array}_{number - 1}" if job else None
        write_json(
            attempt.attempt,
            {
                "number": attempt.number,
                "job": name,
                "restart": restart,
                "nodes": node,
                "host": node,
                "pid": pid,
                "started": time.time() - began * MIN,
            },
        )
        progress = {"state": state, "step": step, "steps": 1200, "epoch": step // 20, "epochs": 60}
        progress |= {"best_dev_uar": uar, "seconds_left": left, "updated": time.time() - until * MIN}
        write_json(attempt.progress, progress)
        if end is not None:
            write_json(attempt.end, {"outcome": end, "error": error, "host": node, "ended": time.time() - until * MIN})
        if end == "done":
            write_json(self.run.trial(trial).done, {"attempt": attempt.number, "seconds": (began - until) * MIN})
        for rank, text in enumerate(log):
            where = self.run.jobs / "trials" / f"{name}_{rank}_log.out"
            write_text(where if job else self.run.jobs / f"seed_{trial.seed}-fold_{trial.fold}.log", text)


def queue(*lines: str) -> str:
    """squeue's answer: element (of array 123, or with its own array, as 124_0), state, reason, node, time used, restarts.

    An exit code may follow, as squeue writes it: 256 times the code, plus the signal.
    """
    rows = []
    for line in lines:
        element, state, reason, node, used, restarts, *exit_code = line.split()
        job = element if "_" in element else f"123_{element}"
        code = exit_code[0] if exit_code else 0
        rows.append(f"{job}|0|ser-x|{state}|{reason}|{node.strip('-')}|{used}|2:00:00|{restarts}|{code}|||\n")
    return "".join(rows)


def slurm(monkeypatch: pytest.MonkeyPatch, **answers: str) -> list[tuple[str, ...]]:
    """Let Slurm's commands answer this, and be missing otherwise; returns what they are asked."""
    asked = []

    def answer(*command: str) -> str:
        asked.append(command)
        if command[0] not in answers:
            raise SlurmError(f"there is no {command[0]} on this machine")
        return answers[command[0]].replace("|", "\x1f")

    for module in (jobs, slurm_queue):
        monkeypatch.setattr(module, "run_slurm", answer)
    return asked


def told(made: MadeRun, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and trials of `--json`."""
    capsys.readouterr()
    code = status.main([str(made.run.path), "--json"])
    return code, json.loads(capsys.readouterr().out)["trials"]


def states(made: MadeRun, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code, trials = told(made, capsys)
    return code, [trial["state"] for trial in trials]
