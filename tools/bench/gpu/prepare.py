"""In the background: noise of IEMOCAP's lengths, packed, and random weights of each family, before its turn comes.

FOLDER/shards   FOLDER/weights/<family>     each is whole once it is there;   FOLDER/ended: nothing more will come
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.core.errors import UserError

CLASSES = 4
MEAN, STD = 4.5, 3.1


def main() -> int:
    from speed.task import FAMILIES, SIZES, configuration, draw_clips, draw_weights, quiet

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--mean", type=float, required=True, help="seconds of a clip; IEMOCAP's is 4.5")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    quiet()
    told: dict[str, Any] = {}
    began = time.monotonic()
    folder = options.folder

    def whole(name: str, aside: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        aside.rename(folder / name)
        told[name] = round(time.monotonic() - began, 1)
        write_json(options.out, told)

    aside = folder / "aside"
    try:
        # Weights first: one core draws them, and packing takes all.
        for family in options.families:
            draw_weights(configuration(family, options.size), CLASSES, 0.0, aside)
            whole(f"weights/{family}", aside)
            if family == options.families[0]:
                draw_clips(options.clips, 0, len(os.sched_getaffinity(0)), aside, options.mean, options.mean * STD / MEAN)
                whole("shards", aside)
    finally:
        (folder / "ended").touch()
    return 0


def wait_for(folder: Path, name: str, patience_s: float) -> Path:
    """Raises UserError where it does not come."""
    deadline = time.monotonic() + patience_s
    while not (folder / name).exists():
        if (folder / "ended").exists() or time.monotonic() > deadline:
            raise UserError(f"{folder / name} was not drawn: see how `prepare` went")
        time.sleep(0.05)
    return folder / name


def with_dropout(weights: Path, dropout: float, folder: Path) -> Path:
    """The same weights under a configuration with this probability wherever transformers drops something out."""
    folder.mkdir(parents=True)
    for file in weights.iterdir():
        if file.name == "config.json":
            told = json.loads(file.read_text(encoding="utf-8"))
            told |= {name: dropout for name in told if name == "dropout" or name.endswith("_dropout")}
            write_json(folder / file.name, told)
        elif file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file.resolve())
        else:
            shutil.copy(file, folder)
    return folder


if __name__ == "__main__":
    cli.run_main(main)
