"""Keep a finished run as a measurement: its report, its settings, how long each trial took, and on what.

    python tools/bench/keep_run.py RUN tools/bench/results/emodb_acrnn.json --command "python -m ser_hpc.launch ..."

Refuses a run with missing trials.
"""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path

import yaml

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.report import write_report
from ser_hpc.results.report_json import to_json
from ser_hpc.run.run_dir import RunDir

PACKAGES = ("torch", "transformers", "deepspeed")
PLACES = ("run", "cluster")  # where it ran is no part of what was measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True, help="what was run, with paths as a reader may know them")
    options = parser.parse_args()
    run = RunDir(options.run)
    result = write_report(run)
    if result.missing:
        raise UserError(f"{run.path} misses {len(result.missing)} trials; a measurement needs them all")
    settings = yaml.safe_load(run.settings.read_text(encoding="utf-8"))
    settings["data"].pop("shards")
    done = [read_json(run.trial(trial).done) for trial in run.trials()]
    write_json(
        options.out,
        {
            "command": options.command,
            "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
            "packages": {name: version(name) for name in PACKAGES},
            "settings": {name: section for name, section in settings.items() if name not in PLACES},
            "trial_seconds": [trial["seconds"] for trial in done],
            "ranks": sorted({trial["ranks"] for trial in done}),
            "report": to_json(result),
        },
    )
    print(options.out)
    return 0


if __name__ == "__main__":
    cli.run_main(main)
