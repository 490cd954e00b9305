"""Where a training step's time goes, on one rank and on several of this machine, and how much of it is not computing.

python tools/bench/scaling.py [--ranks 1 2] [--seconds 120] [--threads 1] [--out scaling.json] [train.precision=bf16 ...]

Trains a random Wav2Vec2 (on a CPU small, on GPUs of the large size) as `python -m ser_hpc.train` does, with about `--seconds`
of audio on each rank in every step (log-normal lengths as in IEMOCAP: mean 4.5 s, standard deviation 3.1 s), so the more ranks,
the larger the step. torch.profiler looks at rank 0 for some steps in the middle of an epoch and splits them into

compute      forward, backward and optimizer: operators of the training thread, on a GPU its kernels
  optimizer  of that, clipping and updating
collectives  of gloo or NCCL, while nothing is computed: what communication and waiting for slower ranks really cost
data         the training thread waits for a batch, and nothing of the above goes on
rest         nothing of all that: Python, launching kernels

Efficiency is audio per second and rank, against the run with the fewest ranks. Ranks of a CPU share its memory's bandwidth and
whatever else runs there: compare on an idle machine, with at least as many cores as ranks times threads.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from ser_hpc import train
from ser_hpc.config.load import load_settings
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.data.batches import Batch, BatchSource
from ser_hpc.engine.distributed import ddp
from ser_hpc.run import experiment
from ser_hpc.run.create_run import write_run
from ser_hpc.run.run_dir import RunDir
from ser_hpc.shards.write import pack

RATE, MEAN_S, SD_S = 16_000, 4.5, 3.1
BEFORE, STEPS = 3, 6  # optimizer steps that are not looked at, and that are
SMALL = {
    "model_type": "wav2vec2", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024,
    "conv_dim": [128] * 7,
}  # fmt: skip
LARGE = {
    "model_type": "wav2vec2", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
}  # fmt: skip
PARTS = ("compute", "optimizer", "collectives", "data", "rest")
Span = tuple[float, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpus = torch.cuda.device_count()
    parser.add_argument("--ranks", type=int, nargs="+", default=sorted({1, gpus or 2}))
    parser.add_argument("--seconds", type=float, default=240 if gpus else 120, help="of audio on each rank in a step")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    parser.add_argument("override", nargs="*", metavar="key=value", help="any setting")
    options = parser.parse_args()
    clips = round(options.seconds / MEAN_S)
    results: list[dict[str, Any]] = []
    device = torch.cuda.get_device_name() if gpus else platform.machine()
    machine = {"device": device, "cores": os.cpu_count(), "torch": torch.__version__}
    setting = {"clips": clips, "steps": STEPS, "threads": options.threads, "settings": options.override}
    with tempfile.TemporaryDirectory() as folder:
        shards = corpus(Path(folder), clips * max(options.ranks) * (BEFORE + STEPS + 1))
        for ranks in options.ranks:
            run = planned(Path(folder) / f"ranks_{ranks}", shards, clips * ranks, options.override)
            results.append(compared(trained(run, ranks, options.threads), results))
            if options.out:
                write_json(options.out, {"machine": machine, **setting, "seconds_a_step": results})
    show(results)
    return 0


def corpus(folder: Path, train_clips: int) -> Path:
    """Shards of noise, and a clip of each class for dev and test."""
    rng = np.random.default_rng(0)
    spread = np.sqrt(np.log(1 + (SD_S / MEAN_S) ** 2))
    seconds = rng.lognormal(np.log(MEAN_S) - spread**2 / 2, spread, train_clips + 4).clip(0.6, 30)
    (folder / "wav").mkdir()
    utterances = []
    for i, length in enumerate(seconds):
        split = {0: "dev", 1: "test"}.get(i // 2, "train")
        path = folder / "wav" / f"{i}.wav"
        soundfile.write(path, rng.normal(0, 300, round(length * RATE)).astype(np.int16), RATE)
        utterances.append(Utterance("noise", f"n{i}", path, f"{split}-{i % 8}", ("calm", "angry")[i % 2], split=split))
    pack(utterances, folder / "shards", workers=1)
    return folder / "shards"


def planned(root: Path, shards: Path, global_batch: int, overrides: Sequence[str]) -> RunDir:
    gpu = torch.cuda.is_available()
    lines = [
        f"run.root={root}", f"data.shards={shards}", "folds.protocol=given_split", "model.weights=null",
        f"model.config={LARGE if gpu else SMALL}", f"train.precision={'bf16' if gpu else 'fp32'}", "train.epochs=1",
        "train.accumulation=1", f"train.global_batch={global_batch}",
        f"folds.max_per_class={global_batch * (BEFORE + STEPS + 1) // 2}",
    ]  # fmt: skip
    return write_run(experiment.prepare_experiment(load_settings(None, [*lines, *overrides])))


def trained(run: RunDir, ranks: int, threads: int) -> dict[str, Any]:
    """Train the run's one trial on so many ranks; what rank 0 saw."""
    told = run.path / "scaling.json"
    env = os.environ | {"WORLD_SIZE": str(ranks), "SER_HPC_START": uuid.uuid4().hex, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--watched", str(run.path), str(told)]
    with (run.path / "log").open("wb") as log:
        started = [
            subprocess.Popen(command, env=env | {"RANK": str(r), "LOCAL_RANK": str(r)}, stdout=log, stderr=log)
            for r in range(ranks)
        ]
        codes = [process.wait() for process in started]
    if any(codes) or not told.exists():
        raise UserError((run.path / "log").read_text(encoding="utf-8", errors="replace")[-2000:])
    return {"ranks": ranks, **read_json(told)}


def watched(run: Path, out: Path) -> int:
    """A rank: the real training, and on rank 0 the profiler beside it."""
    if os.environ["RANK"] == "0":
        watch(out)
    return train.main(["--run-dir", str(run), "--fold", "0"])


def watch(out: Path) -> None:
    """Have steps and the waiting for batches marked, and the steps in the middle counted."""
    seconds: list[float] = []  # of audio, since the profiler last stepped
    audio: list[float] = []  # of each step
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

    def done(found: profile) -> None:
        write_json(out, {"audio_s": float(np.mean(audio[BEFORE + 1 : BEFORE + STEPS])), **split(found)})

    watcher = profile(activities=activities, schedule=schedule(wait=BEFORE - 1, warmup=1, active=STEPS), on_trace_ready=done)

    def step(self: ddp.DdpStrategy, *arguments: Any, _step: Callable[..., Any] = ddp.DdpStrategy.step) -> Any:
        if not audio:
            watcher.start()
        with record_function("bench: optimizer"):
            result = _step(self, *arguments)
        audio.append(sum(seconds))
        seconds.clear()
        watcher.step()
        return result

    def ahead(*arguments: Any, _ahead: Callable[..., Iterator[Batch]] = BatchSource.prefetch, **more: Any) -> Iterator[Batch]:
        batches = _ahead(*arguments, **more)
        while True:
            with record_function("bench: data"):
                batch = next(batches, None)
            if batch is None:
                return
            seconds.append(batch.seconds)
            yield batch

    ddp.DdpStrategy.step = step  # type: ignore[method-assign]
    BatchSource.prefetch = ahead  # type: ignore[method-assign,assignment]


def split(found: profile) -> dict[str, float]:
    """Seconds per step of each part, from the timeline of the steps that were recorded."""
    events = found.events() or []
    steps = sorted(span(event) for event in events if event.name == "bench: optimizer" and event.device_type.name == "CPU")
    thread = next(event.thread for event in events if event.name == "bench: optimizer")
    window = [(steps[0][1], steps[-1][1])]  # from the end of one update to the end of another
    count = len(steps) - 1
    kernels = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    if kernels:
        collectives = [span(event) for event in kernels if "nccl" in event.name.lower()]
        working = [event for event in kernels if "nccl" not in event.name.lower()]
    else:
        collectives = [span(event) for event in events if event.name.startswith("gloo:")]
        working = [event for event in events if event.thread == thread and event.name.startswith("aten::")]
    updates = [
        span(event)
        for event in events
        if event.name == "bench: optimizer" and (event.device_type.name == "CUDA") == bool(kernels)
    ]
    waits = [span(event) for event in events if event.name == "bench: data" and event.device_type.name == "CPU"]
    compute = common(window, union(span(event) for event in working))
    exchanges = without(common(window, union(collectives)), compute)
    data = without(without(common(window, union(waits)), compute), exchanges)
    parts = {"compute": compute, "optimizer": common(compute, union(updates)), "collectives": exchanges, "data": data}
    seconds = {name: length(spans) / count for name, spans in parts.items()}
    whole = length(window) / count
    return {"step": whole, **seconds, "rest": whole - seconds["compute"] - seconds["collectives"] - seconds["data"]}


def span(event: Any) -> Span:
    """Begin and end in seconds."""
    return event.time_range.start / 1e6, event.time_range.end / 1e6


def union(spans: Iterable[Span]) -> list[Span]:
    """The same times as spans that do not touch, in order."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def common(some: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The times that are in both; each is a union."""
    found, i, j = [], 0, 0
    while i < len(some) and j < len(others):
        begin, end = max(some[i][0], others[j][0]), min(some[i][1], others[j][1])
        if begin < end:
            found.append((begin, end))
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return found


def without(some: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The times of `some` that are not in `others`; each is a union."""
    edges = [-np.inf, *(edge for each in others for edge in each), np.inf]
    return common(some, list(zip(edges[::2], edges[1::2], strict=True)))


def length(spans: Sequence[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def compared(row: dict[str, Any], before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """With what is not computing, and the audio a second and rank against the first row's."""
    first = before[0] if before else row
    efficiency = row["audio_s"] / row["step"] / (first["audio_s"] / first["step"])
    return row | {"outside_compute": 1 - row["compute"] / row["step"], "efficiency": efficiency}


def show(results: Sequence[dict[str, Any]]) -> None:
    print("seconds per step of rank 0")
    print("".join(f"{name:>12}" for name in ("ranks", "audio", "step", *PARTS, "outside", "efficiency")))
    for row in results:
        numbers = "".join(f"{row[name]:12.4f}" for name in ("step", *PARTS))
        print(f"{row['ranks']:12}{row['audio_s']:12.1f}{numbers}{row['outside_compute']:12.1%}{row['efficiency']:12.3f}")


if __name__ == "__main__":
    cli.run_main(main if sys.argv[1:2] != ["--watched"] else lambda: watched(Path(sys.argv[2]), Path(sys.argv[3])))
