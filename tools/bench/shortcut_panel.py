"""What the shortcut panel of a report costs, and what it finds: `python tools/bench/shortcut_panel.py SHARDS`

A run is planned on the shards and its panel computed as the first report does, in a process of its own with its imports, while
what is kept goes to a folder for temporary files; then found again, as every later report does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ser_hpc.config.load import load_settings
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.results import run_panel
from ser_hpc.results.run_panel import PANEL_NUMBERS
from ser_hpc.run.create_run import write_run
from ser_hpc.run.experiment import prepare_experiment
from ser_hpc.run.plan import read_plan
from ser_hpc.run.run_dir import RunDir

_FIND = "import sys; from shortcut_panel import find; find(sys.argv[1])"


def main() -> int:
    parser = argparse.ArgumentParser(description="what the shortcut panel costs, and what it finds")
    parser.add_argument("shards", type=Path, help="folder of the packed corpus")
    parser.add_argument("--labels", default="emodb_7", help="label set (default: emodb_7)")
    parser.add_argument("--folds", type=int, default=5, help="groups of speakers (default: 5)")
    parser.add_argument("--out", type=Path, help="keep it as JSON")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        shards.mkdir()
        for path in arguments.shards.resolve().iterdir():
            if path.name not in (run_panel.FOLDER, "scored"):
                (shards / path.name).symlink_to(path)
        lines = [f"run.root={folder}/runs", f"data.shards={shards}", f"data.labels={arguments.labels}", "model.kind=acrnn"]
        folds = ["folds.protocol=speaker_groups", f"folds.count={arguments.folds}"]
        run = write_run(prepare_experiment(load_settings(None, [*lines, *folds])))
        first, again = (_timed(run) for _ in range(2))
        panel, reason = run_panel.find_panel(run, read_plan(run), print, compute=False)
        assert panel is not None, reason
        (kept,) = (shards / run_panel.FOLDER).glob("panel-*.json")
        rows: list[dict[str, Any]] = read_json(kept)["rows"]
    result = {
        "command": f"python tools/bench/shortcut_panel.py SHARDS --out tools/bench/results/{Path(__file__).stem}.json",
        "what": "seconds of a process, imports included, that computes the panel of a run, and of one that finds it again",
        "machine": {"architecture": platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "labels": arguments.labels,
        "folds": arguments.folds,
        "seconds": {"first": round(first[0], 1), "again": round(again[0], 1)},
        "cpu_seconds": {"first": round(first[1], 1), "again": round(again[1], 1)},
        **{name: getattr(panel, name) for name in PANEL_NUMBERS},
        "rows": {row["name"]: {name: row[name] for name in ("uar", "bounds", "unit", "control", "reason")} for row in rows},
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)
    return 0


def find(path: str) -> None:
    """Find the panel of a run, or compute it."""
    run = RunDir(Path(path))
    _, reason = run_panel.find_panel(run, read_plan(run), print, compute=True)
    assert reason is None, reason


def _timed(run: RunDir) -> tuple[float, float]:
    """The seconds of a process that finds the panel, and those of its CPU time."""
    started, before = time.monotonic(), _cpu_s()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", _FIND, str(run.path)], check=True, env=environment)
    return time.monotonic() - started, _cpu_s() - before


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    cli.run_main(main)
