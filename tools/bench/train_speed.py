"""How fast training is, against its peers on this machine, side by side: useful audio-seconds per second.

    python tools/bench/train_speed.py                                     scaled-down encoders, on whatever is here
    python tools/bench/train_speed.py --size real --families wav2vec2-large --out speed.json          what a GPU takes
    python tools/bench/train_speed.py --shards /scratch/shards/emodb      real clips instead of noise of IEMOCAP's lengths

ours    this package: from its shards to the updated weights
alone   transformers without a padded sample, each clip by itself: the least that padding-free training can take (CPU)
A       transformers' Trainer as its audio-classification example sets it up; B, on a GPU: its batches of 32 in bf16, 8 workers
C       Trainer at its best: by length, bf16 on a GPU, workers, fused AdamW, the best batch size of a few
D, E    SpeechBrain's IEMOCAP recipe; with bf16 on a GPU and dynamic batches (where speechbrain is installed; not for Whisper)

All have the same weights, clips, loss and utterances per update, and take turns, in an order that turns as well. Only real
sound counts, padding does not. In a round everybody trains on the same clips, drawn anew for each round; with --round who is
too slow trains on the first updates of them. Seconds are of the wall clock (or, with --clock cpu, of the processor), without
the round's first update and without the first round. Memory is the process's (CPU: resident, libraries included; GPU: tensors).
Arithmetic is counted from real frames (speed/work.py) and divided by what a matrix product reaches here (bf16 on a GPU, fp32 on
a CPU).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from rich.table import Table
from speed import work as arithmetic
from speed.task import CLOCKS, FAMILIES, SIZES, Clips, Task, configuration, draw_clips, draw_weights, quiet
from speed.turns import KINDS, Lost, Turn

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.core.errors import UserError
from ser_hpc.shards import RATE

NEEDS = {"A": "accelerate", "B": "accelerate", "C": "accelerate", "D": "speechbrain", "E": "speechbrain"}
WITHOUT_WHISPER = ("D", "E")
PACKAGES = ("torch", "transformers", "accelerate", "speechbrain", "numpy")
_LONG_S = 86_400.0
_START_S = 240.0  # for a contender to import, load and say its loss


def main() -> int:
    options = parsed()
    quiet()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    peak = arithmetic.measured_peak(device, CLOCKS[options.clock])
    kinds, missing = available(options.contenders, options.device)
    for line in missing:
        print(line, flush=True)
    command = " ".join(["python", "tools/bench/train_speed.py", *sys.argv[1:]]).replace(str(options.out), "FILE")
    setting = {name: plain(value) for name, value in vars(options).items() if name != "out"}
    report: dict[str, Any] = {"command": command, "setting": setting, "families": {}}
    report |= {"machine": machine(device), "packages": versions(), "peak_tflops": peak / 1e12, "missing": missing}
    with tempfile.TemporaryDirectory() as folder:
        shards = options.shards or Path(folder) / "shards"
        if options.shards is None:
            draw_clips(options.clips, options.seed, len(os.sched_getaffinity(0)), shards)
        clips = Clips(shards)
        for family in options.families:
            weights = Path(folder) / family
            deadline = time.monotonic() + options.seconds
            draw_weights(configuration(family, options.size), len(clips.classes), options.dropout, weights)
            task = task_of(options, weights, shards)
            able = [kind for kind in kinds if not (task.whisper and kind in WITHOUT_WHISPER)]
            report["families"][family] = compared(task, able, len(clips) // options.update, options, peak, deadline)
            show(family, report["families"][family])
            if options.out:
                write_json(options.out, report)
    return 0


def parsed() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    everybody = [kind for kind in KINDS if kind != ("alone" if cuda else "B")]
    parser.add_argument("--contenders", nargs="+", choices=KINDS, default=everybody)
    parser.add_argument("--shards", type=Path, help="a packed corpus (default: noise of IEMOCAP's lengths)")
    parser.add_argument("--clips", type=int, default=1024 if cuda else 256, help="of noise")
    parser.add_argument("--update", type=int, default=64 if cuda else 32, help="utterances per optimizer step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--round", type=float, default=_LONG_S, help="seconds that one contender's turn should take")
    parser.add_argument("--seconds", type=float, default=_LONG_S, help="for a family: what was measured by then counts")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if cuda else "fp32", help="but for A, B and D")
    parser.add_argument("--freeze", choices=("none", "stem"), default="none")
    parser.add_argument("--dropout", type=float, default=0.0, help="everywhere in the encoder, for all")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="settings of ours, as budget_seconds=240")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    clocks = "cpu: for a machine with other work; with 1 thread, and without workers"
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help=clocks)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    if options.shards is None and options.clips < options.update:
        raise UserError(f"--clips {options.clips} is less than an update: give at least --update, {options.update}")
    if "ours" not in options.contenders:
        raise UserError("--contenders without ours: there would be nothing to compare with")
    return options


def task_of(options: argparse.Namespace, weights: Path, shards: Path) -> Task:
    return Task(
        weights=weights,
        shards=shards,
        device=options.device,
        precision=options.precision,
        update=options.update,
        frozen_stem=options.freeze == "stem",
        threads=options.threads,
        clock=options.clock,
        train={key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options.train)},
    )


def available(wanted: list[str], device: str) -> tuple[list[str], list[str]]:
    """Who can take part here, and a line for each that cannot."""
    lacking = {kind: NEEDS[kind] for kind in wanted if kind in NEEDS and find_spec(NEEDS[kind]) is None}
    lines = [f"{kind} is left out: {package} is not installed" for kind, package in lacking.items()]
    if device == "cpu" and "B" in wanted:
        lines.append("B is left out: it is for GPUs")
    return [kind for kind in wanted if kind not in lacking and (kind, device) != ("B", "cpu")], lines


def compared(
    task: Task, kinds: list[str], updates: int, options: argparse.Namespace, peak: float, deadline: float
) -> dict[str, Any]:
    """Each contender's results; by round: `rates` in useful audio-s/s, `of_peak`, how many times faster ours was."""
    results: dict[str, dict[str, Any]] = {kind: {"rates": {}, "of_peak": {}} for kind in kinds}
    turns: dict[str, Turn] = {}
    config = task.config

    def lost(kind: str, error: Lost) -> None:
        results[kind]["lost"] = str(error)
        turns.pop(kind, None)

    def left() -> float:
        return deadline - time.monotonic()

    together = [kinds] if task.device == "cuda" else [[kind] for kind in kinds]  # a machine with a GPU has cores to load them
    try:
        for some in together:
            turns |= {kind: Turn(kind, task) for kind in some}
            for kind in some:
                try:
                    results[kind] |= turns[kind].answer(min(_START_S, left()))
                except Lost as error:
                    lost(kind, error)
        counts, spent = dict.fromkeys(kinds, min(2, updates)), dict.fromkeys(kinds, 0.0)
        for number in range(options.repeats + 1):
            if left() < sum(spent[kind] for kind in turns):
                break  # a round that not all finish counts for nobody
            order = kinds[number % len(kinds) :] + kinds[: number % len(kinds)]  # nobody always goes first
            for kind in [kind for kind in order if kind in turns]:
                began = time.monotonic()
                try:
                    said = turns[kind].train(number, counts[kind], left())
                except Lost as error:
                    lost(kind, error)
                    continue
                spent[kind] = time.monotonic() - began
                result, seconds, samples = results[kind], said["seconds"], said["samples"]
                result |= {"how": said["how"], "peak_gb": said["peak_gb"], "updates": counts[kind]}
                if number:
                    work = arithmetic.training(config, samples, frozen_stem=task.frozen_stem)
                    result["rates"][number] = sum(samples) / RATE / seconds
                    result["of_peak"][number] = work / seconds / peak
                else:  # the first round warms up, and tells how many updates a turn has room for
                    room = options.round / seconds * counts[kind]
                    spent[kind] *= (counts[kind] + min(room, updates)) / (counts[kind] + 1)
                    counts[kind] = int(max(1, min(room, updates)))
    finally:
        for turn in turns.values():
            turn.end()
    ours = results["ours"]["rates"]
    for result in results.values():
        result["ours_is_faster"] = {n: ours[n] / rate for n, rate in result["rates"].items() if n in ours}
    return results


def show(family: str, results: dict[str, dict[str, Any]]) -> None:
    table = Table("", "audio-s/s", "ours is faster: median [least, most]", "of the peak", "memory", "loss", "how", title=family)
    for kind, result in results.items():
        rates, ratios = list(result["rates"].values()), list(result["ours_is_faster"].values())
        if not rates:
            table.add_row(kind, "-", "", "", "", "", result.get("lost", "no time"))
            continue
        versus = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]" if kind != "ours" and ratios else ""
        share, memory = f"{median(result['of_peak'].values()):.1%}", f"{result['peak_gb']:.2f} GB"
        how = result["how"] + (f" ({result['lost']})" if "lost" in result else "")
        table.add_row(kind, f"{median(rates):,.1f}", versus, share, memory, f"{result['loss']:.4f}", how)
    cli.make_console().print(table)


def plain(value: Any) -> Any:
    """For JSON."""
    return str(value) if isinstance(value, Path) else value


def machine(device: torch.device) -> dict[str, Any]:
    about = {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    return about | {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"}


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    cli.run_main(main)
