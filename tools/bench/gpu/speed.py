"""One contender on one family, alone on the machine: useful audio-seconds per second, round by round, each kept when it ends.

The first round warms up and tells how many updates a turn of `--round` seconds has room for. Everybody trains on the same clips
in the same round. `loss`: of the shortest clip before training; `loss_after`: after the first round, the same updates for all.
With --profile, where the time goes (profiled.py), once the rounds are over.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from speed import work as arithmetic
from speed.rounds import Rounds
from speed.task import FAMILIES, Task
from speed.turns import KINDS

from gpu.prepare import wait_for, with_dropout
from gpu.profiled import profiled
from gpu.told import write_told
from ser_hpc.core import cli
from ser_hpc.shards import RATE

_PATIENCE_S = 60.0  # for what is drawn in the background
COMPILE = ("ours", "C-compiled")  # or may: their first round tells nothing of the others
_FIRST, _PROFILED = 2, 3  # updates of the round that warms up, and of the one that is looked into
_PROFILE_S = 6.0
_FREE, _FREE_S = 0.9, 10.0


def main() -> int:
    options = parsed()
    began = time.monotonic()
    told: dict[str, Any] = {"free_gb": free_gb(options.device), "rates": {}, "of_peak": {}}

    def keep(**more: Any) -> None:
        told.update(more)
        write_told(options.out, told)

    task = task_of(options)
    rounds = Rounds(options.contender, task)
    config, whole = task.config, len(rounds.clips) // task.update
    keep(**rounds.ready(), ready_s=round(time.monotonic() - began, 1))
    peak = 1e12 * options.peak_tflops if options.peak_tflops else arithmetic.measured_peak(torch.device(options.device))
    first = min(_FIRST, whole)
    said = rounds.train(0, first)
    keep(loss_after=rounds.loss(), first_round_s=said["seconds"])
    if options.contender in COMPILE:
        said = rounds.train(0, first)
    updates = int(max(1, min(options.round / said["seconds"] * first, whole)))
    keep(updates=updates, warm_s=round(time.monotonic() - began, 1))
    for number in range(1, options.repeats + 1):
        expected = (updates + 1) * said["seconds"] / max(1, len(said["samples"]) // task.update)
        if options.seconds - (time.monotonic() - began) < expected:
            break
        said = rounds.train(number, updates)
        work = arithmetic.training(config, said["samples"], frozen_stem=task.frozen_stem)
        told["rates"][number] = sum(said["samples"]) / RATE / said["seconds"]
        told["of_peak"][number] = work / said["seconds"] / peak
        keep(peak_gb=said["peak_gb"], how=said["how"], round_s=said["seconds"])
        print(f"round {number}: {told['rates'][number]:.1f} audio-s/s, {told['of_peak'][number]:.1%} of the peak", flush=True)
    if options.profile and options.seconds - (time.monotonic() - began) > _PROFILE_S:
        gc.collect()
        warm_up, positions = rounds.drawn(0, min(_PROFILED, whole))
        keep(profile=profiled(lambda: rounds.contender.train(warm_up, positions), options.device))
    if not told["rates"]:
        print("no time for a round")
    return 0 if told["rates"] else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(FAMILIES), required=True)
    parser.add_argument("--contender", choices=(*KINDS, "C-compiled"), required=True)
    parser.add_argument("--drawn", type=Path, required=True, help="folder of prepare.py")
    parser.add_argument("--update", type=int, default=64, help="utterances per optimizer step")
    parser.add_argument("--round", type=float, default=2.0, help="seconds that a round should take")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=86_400.0, help="for everything; a round that would take longer is not begun"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--dropout", type=float, default=0.0, help="everywhere in the encoder")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="settings of ours")
    parser.add_argument("--peak-tflops", type=float, help="of a matrix product on this machine")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def task_of(options: argparse.Namespace) -> Task:
    weights = wait_for(options.drawn, f"weights/{options.family}", _PATIENCE_S)
    if options.dropout:
        weights = with_dropout(weights, options.dropout, options.out.with_suffix(".weights"))
    return Task(
        weights=weights,
        shards=wait_for(options.drawn, "shards", _PATIENCE_S),
        device=options.device,
        precision=options.precision,
        update=options.update,
        frozen_stem=False,
        threads=1 if options.device == "cpu" else len(os.sched_getaffinity(0)),  # a rehearsal shares its machine
        clock="wall",
        train={key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options.train)},
    )


def free_gb(device: str) -> float | None:
    """Of the GPU, once who was there before has left it, or after a while."""
    if device != "cuda":
        return None
    deadline = time.monotonic() + _FREE_S
    while True:
        free, total = torch.cuda.mem_get_info()
        if free > _FREE * total or time.monotonic() > deadline:
            return free / 1e9
        time.sleep(0.2)


if __name__ == "__main__":
    cli.run_main(main)
