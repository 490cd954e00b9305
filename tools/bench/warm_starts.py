"""Measure what a rank's start costs, as a new process and from the warm process, in CPU seconds.

python tools/bench/warm_starts.py [--rounds 5] [--out warm_starts.json] [train.epochs=1 ...]

For each kind of model: a rank that imports what a trial needs and ends, cold and warm in turns; and once for all of them what
the warm process imports. Then the demo, launched as anybody would, with cold starts and with warm ones: all its processes.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from ser_hpc.config.load import load_settings
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.core.errors import UserError
from ser_hpc.launchers.rank_process import RankStarter, libraries_of

ALL = "import ser_hpc.train, ser_hpc.run.experiment, ser_hpc.engine.loop, ser_hpc.models."
KINDS = {
    "encoder": ([], ALL + "encoders.pretrained"),
    "CRNN": (["model.kind=acrnn"], ALL + "encoders.acrnn"),
    "probe": (["model.head.kind=probe", "model.freeze=encoder"], ALL + "encoders.pretrained, ser_hpc.engine.probe"),
}
LAUNCH = "import sys; from ser_hpc.launchers import local; from ser_hpc.launch import main; "
DEMO = "the demo, all of it"
COLD = "local.libraries_of = lambda settings: (); "


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    parser.add_argument("override", nargs="*", metavar="key=value", help="any setting of the demo")
    options = parser.parse_args()
    print(f"{'CPU seconds':24}{'cold':>8}{'warm':>8}{'once, for all':>16}", flush=True)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in (*KINDS, DEMO):
            measure = partial(demo_costs, options.override) if kind == DEMO else partial(start_costs, kind, options.rounds)
            costs = found[kind] = measure(Path(folder))
            print(f"{kind:24}{costs['cold']:8.2f}{costs['warm']:8.2f}{costs.get('imports', 0.0):16.2f}", flush=True)
            if options.out:
                machine = {"device": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
                write_json(options.out, {"machine": machine, "overrides": options.override, "cpu_s": found})
    return 0


def start_costs(kind: str, rounds: int, folder: Path) -> dict[str, float]:
    """CPU seconds of a cold start, a warm one, and the warm process's imports."""
    overrides, imports = KINDS[kind]
    (folder / "a_trial.py").write_text(imports)
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}", "OMP_NUM_THREADS": "1"}
    cold = RankStarter((), environment, "")
    spent: dict[str, list[float]] = {"cold": [], "warm": []}
    with RankStarter(libraries_of(load_settings(None, ["data.shards=none", *overrides])), environment, "") as warm:
        while not warm.is_ready():
            time.sleep(0.05)
        for _ in range(rounds):
            for way, starter in (("cold", cold), ("warm", warm)):
                before = children_cpu_s()
                with Path(os.devnull).open("wb") as log:
                    if starter.start("a_trial", [], {}, log).wait():
                        raise UserError("what a trial needs could not be imported")
                spent[way].append(children_cpu_s() - before)
        before = children_cpu_s()
    return {way: median(seconds) for way, seconds in spent.items()} | {"imports": children_cpu_s() - before}


def demo_costs(overrides: list[str], folder: Path) -> dict[str, float]:
    spent = {}
    for way, change in (("cold", COLD), ("warm", "")):
        before = children_cpu_s()
        words = ["--cluster", "local", f"run.root={folder / way}", *overrides]
        code = f"{LAUNCH}{change}sys.exit(main(sys.argv[1:]))"
        subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)
        spent[way] = children_cpu_s() - before
    return spent


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    cli.run_main(main)
