"""Predict one long recording in windows, in a process of its own, and tell the most memory that it had, and its time.

python tools/bench/predict_memory.py MODEL_OR_RUN /data/emodb [--hours 2] [--out predict_memory.json]

The recording is a FLAC file of a folder's recordings, one after another, again and again.
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
from pathlib import Path

import numpy as np
import soundfile

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.parse_result import find_recordings
from ser_hpc.shards import RATE, audio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run, or an exported folder")
    parser.add_argument("recordings", type=Path, help="a folder of sound files")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--window", type=float, default=4.0, help="seconds; windows do not overlap")
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, rows = Path(folder, "long.flac"), Path(folder, "rows.csv")
        write_long(options.recordings, path, round(options.hours * 3600 * RATE))
        arguments = [str(options.model), str(path), "--window", f"{options.window:g}", "--out", str(rows)]
        began = time.perf_counter()
        ended = subprocess.run([sys.executable, "-m", "ser_hpc.predict", *arguments], check=False)
        if ended.returncode:
            raise UserError(f"it ended with {ended.returncode}")
        took, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        windows = len(rows.read_text().splitlines()) - 1
    report = {
        "command": f"python tools/bench/predict_memory.py RUN {options.recordings}",
        "machine": {"device": platform.machine(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "model": options.model.name, "hours": options.hours, "window_s": options.window, "windows": windows,
        "max_rss_mb": round(used.ru_maxrss / 1024),
        "cpu_s": round(used.ru_utime + used.ru_stime), "wall_s": round(took),
    }  # fmt: skip
    print(report)
    if options.out:
        write_json(options.out, report)
    return 0


def write_long(folder: Path, path: Path, samples: int) -> None:
    joined = np.concatenate([audio.decode(each).samples for each in find_recordings(folder)])
    soundfile.write(path, np.resize(joined, samples), RATE)


if __name__ == "__main__":
    cli.run_main(main)
