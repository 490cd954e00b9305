"""What travels to a machine with a GPU and without a package index, beside this checkout: wheels, clips, a model.

    python tools/bench/gpu_material.py --corpus EMODB --model WHISPER_BASE [--out gpu_material] [--python 3.12]

wheels      what this package, DeepSpeed and SpeechBrain need beside torch, torchaudio, transformers, accelerate and what these
            bring; gpu_all.py unpacks those whose package is not installed there
shards      six speakers of Emo-DB, three women and three men, packed
model.zip   the folder of pre-trained weights, as transformers saves one (its encoder suffices)

The folder is ignored by git: name it where only tracked files travel. Everything together, the checkout too, is to stay under
60 MiB, and is refused above that. DeepSpeed comes as its source and is built here, without its compiled operators.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.parsers import emodb
from ser_hpc.shards.write import pack

SPEAKERS = ("03", "08", "09", "10", "12", "13")
WHEELS = (
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "soundfile", "cffi", "pycparser", "soxr",
    "hjson", "msgpack", "psutil", "py-cpuinfo", "einops", "speechbrain", "hyperpyyaml", "ruamel.yaml", "ruamel.yaml.clib",
)  # fmt: skip
BUILT = "deepspeed"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
LIMIT = 60 * 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="Emo-DB as it is downloaded")
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json and model.safetensors")
    parser.add_argument("--out", type=Path, default=Path("gpu_material"))
    parser.add_argument("--python", default="3.12", help="that machine's")
    options = parser.parse_args()
    if not (options.model / "model.safetensors").exists():
        raise UserError(f"--model {options.model}: there is no model.safetensors in it")
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    wheels(options.out / "wheels", options.python)
    found = emodb.parse(options.corpus).utterances
    pack([clip for clip in found if clip.speaker in SPEAKERS], options.out / "shards", workers=len(os.sched_getaffinity(0)))
    shutil.make_archive(str(options.out / "model"), "zip", options.model)  # a twelfth less than float16 takes as it is
    return told(options.out)


def wheels(folder: Path, python: str) -> None:
    """One version of each, as this environment has it, so that what was rehearsed here is what runs there."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    here = [f"--platform={platform}" for platform in PLATFORMS]
    target = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *here]
    wanted = [pinned(name) for name in WHEELS]
    subprocess.run([*pip, "download", *target, "--dest", str(folder), *wanted], check=True)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), pinned(BUILT)]
    subprocess.run(build, check=True, env=os.environ | {"DS_BUILD_OPS": "0"})


def pinned(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name


def told(folder: Path) -> int:
    """Print what there is, and whether it can travel. Raises UserError if it is too much."""
    checkout = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout.split(b"\0")
    parts = {"checkout": sum(Path(os.fsdecode(name)).stat().st_size for name in checkout if name)}
    for part in folder.iterdir():
        parts[part.name] = sum(file.stat().st_size for file in (part, *part.rglob("*")) if file.is_file())
    for name, size in parts.items():
        print(f"{name:10}{size / 2**20:8.1f} MiB")
    if (whole := sum(parts.values())) > LIMIT:
        raise UserError(f"{whole / 2**20:.1f} MiB, of at most {LIMIT // 2**20}: leave speechbrain out, or a speaker")
    print(f"{'together':10}{whole / 2**20:8.1f} MiB, of at most {LIMIT // 2**20}")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
