"""What a run cost besides training: read from the run directory of a finished run, nothing is run again.

python tools/bench/overhead.py RUN [--out tools/bench/results/overhead.json --command "..."]

start-up    seconds from an attempt's beginning (before torch is imported) to the end of its first optimizer step
save        seconds that a checkpoint kept training waiting (it is written beside training)
report      seconds from the last trial's marker to the report
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from statistics import median

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.run.run_dir import RunDir


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    parser.add_argument("--command", help="what was run, with paths as a reader may know them")
    options = parser.parse_args()
    run = RunDir(options.run)
    trials = [run.trial(trial) for trial in run.trials()]
    if not all(place.is_done for place in trials) or not run.report_json.exists():
        raise UserError(f"{run.path} is not finished: python -m ser_hpc.status tells what is missing")
    told = [read_json(attempt.progress) for place in trials for attempt in place.attempts if attempt.progress.exists()]
    last = max(place.done.stat().st_mtime for place in trials)
    seconds = {
        "startup_s": [entry["startup_s"] for entry in told if "startup_s" in entry],
        "save_s": [entry["save_s"] for entry in told if "save_s" in entry],
        "report_s": [round(run.report_json.stat().st_mtime - last, 1)],
    }
    for name, values in seconds.items():
        print(f"{name:10} median {median(values):8.3f}   worst {max(values):8.3f}   of {len(values)}")
    if options.out:
        machine = {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        write_json(options.out, {"command": options.command, "machine": machine, **seconds})
    return 0


if __name__ == "__main__":
    cli.run_main(main)
