"""From starting a process to its first optimizer step, and from the launch of a small run to its aggregated UAR: where it goes.

python tools/bench/startup.py [--out startup.json] [train.epochs=3 ...]

Launches the demo (synthetic speech, five folds, a small Wav2Vec2 from scratch) on this machine, as anybody would, each process
telling what its main thread spent its time on (spans/sitecustomize.py). Then imports once more what a trial imports, under
Python's own -X importtime, which names the packages; it makes them slower, so take its shares, not its seconds.

first batch, and python   what is in no other part: the interpreter's start, the first batch, its forward and backward
training                  all steps after the first, between evaluations and saves
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError

OPENED = "import sys; opened = []; sys.addaudithook(lambda event, _: opened.append(0) if event == 'open' else None)"
A_TRIAL = "import ser_hpc.train, ser_hpc.run.experiment, ser_hpc.engine.loop, ser_hpc.models.encoders.pretrained"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=int, default=12, help="that cost most to import")
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    parser.add_argument("override", nargs="*", metavar="key=value", help="any setting of the demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        launcher, ranks = launched(Path(folder), options.override or ["train.epochs=3"])
    first = [first_step(rank) for rank in ranks]
    whole = {"launcher": lasting(launcher), "trials": sum_of([lasting(rank) for rank in ranks])}
    packages = imported(options.packages)
    starting = {name: median(each.get(name, 0.0) for each in first) for name in first[0]}
    show(f"seconds to the first step: median of {len(ranks)} trials, rank 0", starting)
    show("launcher, seconds from its start to the report", whole["launcher"])
    show(f"all {len(ranks)} trials together, rank 0", whole["trials"])
    modules, files = packages.pop("modules"), packages.pop("files opened")
    show(f"importing what a trial needs, {modules} modules, {files} files opened, by package", packages)
    if options.out:
        machine = {"device": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        report = {"first_step_s": starting, "spread_s": sorted(sum(each.values()) for each in first), **whole}
        report["imports"] = {"modules": modules, "files_opened": files}
        write_json(options.out, {"machine": machine, "overrides": options.override, **report, "import_s": packages})
    return 0


def launched(folder: Path, overrides: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the launcher told, and rank 0 of each trial."""
    spans = folder / "spans"
    spans.mkdir()
    here = str(Path(__file__).parent / "spans")
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "ser_hpc.launch", "--cluster", "local", f"run.root={folder}", *overrides]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths, "BENCH_SPANS": str(spans)}, check=False)
    told = [read_json(file) for file in spans.glob("*.json")]
    launchers = [each for each in told if "ser_hpc.launch" in each["command"]]
    ranks = [each for each in told if "ser_hpc.train" in each["command"] and each["rank"] == "0"]
    if ended.returncode or not launchers or not all(rank["first_step"] for rank in ranks):
        raise UserError("the run did not end well, or its processes did not tell")
    return launchers[0], ranks


def first_step(rank: dict[str, Any]) -> dict[str, float]:
    """Seconds from the process's start to the end of its first update."""
    told: dict[str, float] = dict(rank["before"])
    inside = rank["first_step"] - rank["began"]
    return told | {"first batch, and python": inside - sum(told.values())}


def lasting(process: dict[str, Any]) -> dict[str, float]:
    """Of a process, start to end; a trial's is start-up until its first step, then by part."""
    if process["first_step"] is None:
        told = dict(process["before"])
        return told | {"rest": process["ended"] - process["began"] - sum(told.values())}
    told = dict(process["after"])
    told["training"] = process["ended"] - process["first_step"] - sum(told.values()) + told.pop("update", 0.0)
    return {"start-up": process["first_step"] - process["began"], **told}


def sum_of(parts: list[dict[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for each in parts:
        total.update(each)
    return dict(total)


def imported(count: int) -> dict[str, float]:
    """Seconds by package, the `count` largest and the others; the number of modules, and of files that had to be opened."""
    code = f"{OPENED}; {A_TRIAL}; print(len(opened))"
    told = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    spent: Counter[str] = Counter()
    modules = 0
    for line in told.stderr.splitlines():
        own, _, name = line.removeprefix("import time:").partition("|")
        if own.strip().isdecimal():
            spent[name.split("|")[1].strip().split(".")[0]] += int(own) / 1e6
            modules += 1
    largest = dict(spent.most_common(count))
    return {
        **largest,
        "others": sum(spent.values()) - sum(largest.values()),
        "modules": modules,
        "files opened": int(told.stdout),
    }


def show(title: str, parts: dict[str, float]) -> None:
    whole = sum(parts.values())
    print(f"\n{title}")
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"  {name:24}{seconds:9.2f}{seconds / whole:8.1%}")
    print(f"  {'in all':24}{whole:9.2f}")


if __name__ == "__main__":
    cli.run_main(main)
