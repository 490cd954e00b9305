"""On the PYTHONPATH of processes, has them tell what their time went into; startup.py starts them and reads it.

Each leaves `<its number>.json` in the folder that BENCH_SPANS names: when it began, made its first optimizer step and ended
(seconds since the epoch), and the seconds that its main thread spent in each part before and after that step. What is called
inside a part belongs to it, but for imports, which are always a part of their own.
"""

from __future__ import annotations

import atexit
import builtins
import functools
import importlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTS = "imports"
PARTS = {
    "ser_hpc.run.demo_shards": {"make_demo_shards": "demo's speech"},
    "ser_hpc.run.experiment": {"prepare": "plan", "reopen": "plan"},
    "ser_hpc.launchers.local": {"run_trials": "trials"},
    "ser_hpc.report": {"show_report": "report"},
    "ser_hpc.engine.fault.node_check": {"check": "node's check"},
    "ser_hpc.engine.distributed.world": {"join": "joining", "World.leave": "leaving"},
    "ser_hpc.models.classifier": {"build": "model"},
    "ser_hpc.engine.distributed.build": {"build": "strategy"},
    "ser_hpc.engine.step_metrics": {"StepMetrics.measure_data_once": "data's probe"},
    "ser_hpc.engine.evaluation": {"predict": "evaluation"},
    "ser_hpc.engine.fault.checkpoint": {
        "save_weights": "saving",
        "Writer.save": "saving",
        "Writer.wait": "saving",
    },
    "ser_hpc.engine.distributed.ddp": {"Replicated.step": "update"},
}


class Told:
    def __init__(self, folder: Path) -> None:
        self.folder, self.todo = folder, dict(PARTS)
        self.first_step: float | None = None
        self.spent = (Counter[str](), Counter[str]())  # before the end of the first step, and after it
        self.stack: list[list[Any]] = []  # part, begin, seconds inside that are another part's

    def part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*arguments, **options)
            own = self.stack[-1][0] if self.stack and name != IMPORTS else name
            self.stack.append([own, time.time(), 0.0])
            try:
                return function(*arguments, **options)
            finally:
                _, begin, others = self.stack.pop()
                now = time.time()
                self.spent[self.first_step is not None][own] += now - begin - others
                if self.stack:
                    self.stack[-1][2] += now - begin
                if name == "update" and self.first_step is None:
                    self.first_step = now
                if name == IMPORTS and self.todo:
                    self.watch()

        return timed

    def watch(self) -> None:
        """The parts of modules that have just been imported."""
        for module in [name for name in self.todo if name in sys.modules]:
            if getattr(sys.modules[module].__spec__, "_initializing", False):
                continue
            for path, name in self.todo.pop(module).items():
                *owner, function = path.split(".")
                where = functools.reduce(getattr, owner, sys.modules[module])
                setattr(where, function, self.part(name, getattr(where, function)))

    def write(self) -> None:
        before, after = self.spent
        what = {"command": sys.orig_argv, "rank": os.environ.get("RANK"), "began": began(), "first_step": self.first_step}
        told = json.dumps(what | {"ended": time.time(), "before": before, "after": after})
        (self.folder / f"{os.getpid()}.json").write_text(told, encoding="utf-8")


def began() -> float:
    """When this process was started, to a hundredth of a second."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


if "BENCH_SPANS" in os.environ:
    told = Told(Path(os.environ["BENCH_SPANS"]))
    builtins.__import__ = told.part(IMPORTS, builtins.__import__)
    importlib.import_module = told.part(IMPORTS, importlib.import_module)
    atexit.register(told.write)
