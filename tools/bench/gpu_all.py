"""All that needs a GPU, in one call of at most ten minutes: what cannot run is named, what takes too long is ended.

    python tools/bench/gpu_all.py --out OUT            on a machine with a GPU
    python tools/bench/gpu_all.py --out OUT --dry-run  everything once, tiny, on a CPU

Nothing is installed. Beside torch, transformers, safetensors, numpy, pyarrow, pyyaml, rich and fsspec it needs
    this package     pydantic pydantic-core annotated-types typing-inspection soundfile cffi pycparser soxr
    A, B, C          accelerate
    D, E             speechbrain hyperpyyaml ruamel.yaml ruamel.yaml.clib sentencepiece
which a machine without a package index is given as wheels. Settings of ours may be added: --train budget_seconds=240
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NEEDED = ("torch", "transformers", "safetensors", "numpy", "pyarrow", "yaml", "rich", "fsspec", "pydantic", "soundfile", "soxr")
PEERS = ("accelerate", "speechbrain")


@dataclass(frozen=True)
class Part:
    name: str
    limit_s: float
    command: tuple[str, ...]


def parts(dry: bool, train: list[str]) -> list[Part]:
    """The most telling first: what is left when time is up is left out."""
    speed = ("train_speed.py", *(("--train", *train) if train else ()))
    if dry:
        tiny = ("--size", "tiny", "--device", "cpu")
        short = ("--clips", "16", "--update", "8", "--repeats", "1", "--contenders", "ours", "A", "C", "D", "E")
        families = ("wav2vec2-large", "whisper-large-v3")
        checks = Part("checks", 300, ("gpu_checks.py", *tiny))
        return [checks, *(Part(f"speed-{f}", 300, (*speed, *tiny, *short, "--families", f)) for f in families)]
    real = ("--size", "real", "--round", "2", "--repeats", "3")
    whisper = ("--update", "32", "--contenders", "ours", "A", "B", "C")

    def family(name: str, limit_s: int, *more: str) -> Part:
        return Part(f"speed-{name}", limit_s, (*speed, *real, "--seconds", str(limit_s - 15), "--families", name, *more))

    return [
        Part("checks", 100, ("gpu_checks.py",)),
        family("wav2vec2-large", 110),
        family("whisper-large-v3", 120, *whisper),
        family("wavlm-large", 100),
        family("wav2vec2-base", 90),
        family("hubert-large", 90, "--contenders", "ours", "A", "B", "C"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for each part's JSON file and log, and summary.json")
    parser.add_argument("--limit", type=float, default=570, help="seconds for everything")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, to see that everything runs")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="settings of ours")
    options = parser.parse_args()
    missing = [name for name in (*NEEDED, *PEERS) if find_spec(name) is None]
    print("missing packages:", ", ".join(missing) or "none", flush=True)
    if any(name in NEEDED for name in missing):
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.limit * (10 if options.dry_run else 1)  # a CPU has no ten minutes
    summary: dict[str, Any] = {"missing": missing, "parts": {}}
    for part in parts(options.dry_run, options.train):
        began = time.monotonic()
        how = run(part, options.out, min(part.limit_s, deadline - began))
        summary["parts"][part.name] = {"how": how, "seconds": round(time.monotonic() - began, 1)}
        print(f"{part.name}: {how}, {summary['parts'][part.name]['seconds']} s", flush=True)
        (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
    return 0 if all(part["how"] == "done" for part in summary["parts"].values()) else 1


def run(part: Part, out: Path, limit_s: float) -> str:
    """How it went. Its output goes to a log, and comes out here once it has ended."""
    if limit_s < 20:
        return "no time left"
    script, *arguments = part.command
    command = [sys.executable, str(HERE / script), *arguments, "--out", str(out / f"{part.name}.json")]
    log = out / f"{part.name}.log"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            code = process.wait(limit_s)
            how = "done" if code == 0 else f"failed with code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its contenders
            process.wait()
            how = f"ended after {limit_s:.0f} s"
    print(log.read_text(), flush=True)
    return how


if __name__ == "__main__":
    sys.exit(main())
