"""Peak memory of a training step on one GPU, stated from the model; measured beside it where there is a GPU.

python tools/bench/memory.py [--models wav2vec2-large] [--precisions bf16] [--seconds 240] [--clip 5] [--out memory.json]

The statement is what `ser_hpc/engine/memory/model.py` says: bytes that stand there anyway, and a line through two measured
peaks of activations. Encoders have their true sizes and random weights. On a CPU these peaks are counted tensor by tensor
(products are not computed); real steps of a scaled-down encoder, as torch's profiler saw them allocate, then show how far the
line is to be trusted. On a GPU the peak of real steps of the true size stands beside: each of two micro-batches of `--seconds`,
so that gradients are kept. Every row is kept when it is there.

Dropout is 0, with which attention in half precision is one variable-length call on a GPU; with attention dropout, or in fp32,
a GPU attends to clips of like length together, and needs copies for it.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from ser_hpc.config.settings import EncoderModel, TrainSettings
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.engine.distributed import build
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.memory.model import static_bytes
from ser_hpc.engine.memory.search import Probe
from ser_hpc.models import checkpointing
from ser_hpc.models.classifier import Classifier, build_classifier

RATE = 16_000
LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
LARGE: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, **LAYER_NORM,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "wav2vec2-base": {"model_type": "wav2vec2"},
    "wav2vec2-large": {"model_type": "wav2vec2", "conv_bias": True, **LARGE},
    "wavlm-large": {"model_type": "wavlm", **LARGE},
    "whisper-large-v3": {
        "model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "num_mel_bins": 128,
    },
}  # fmt: skip
SCALED_DOWN = "scaled down"
SMALL: dict[str, Any] = {
    "model_type": "wav2vec2", "conv_dim": [128] * 7, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 1024, **LAYER_NORM,
}  # fmt: skip


def stated(model: Classifier, train: TrainSettings, again: bool, options: argparse.Namespace) -> dict[str, float]:
    """Bytes of a micro-batch of `--seconds` in clips of `--clip` seconds, from the model of memory."""
    activations = Probe(model, train, options.device, again).activations(round(options.clip * RATE), shapes_only=True)
    assert activations, "two clips fit"
    standing = static_bytes(model, train, 1)
    peak = standing + activations.bytes(options.seconds)
    return {"standing": standing, "fixed": activations.fixed_bytes, "a_second": activations.bytes_per_second, "peak": peak}


def measured(model: Classifier, train: TrainSettings, again: bool, seconds: float, options: argparse.Namespace) -> float:
    """Bytes of the second of two real steps of two micro-batches of so many seconds; takes the model over."""
    if again:
        checkpointing.enable(model)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    ranks = build.build_strategy(model, train, World(0, 1, 0, 1, options.device), None)
    ranks.train_mode(True)
    clips, samples = max(1, round(seconds / options.clip)), round(options.clip * RATE)
    wave, offsets = torch.zeros(clips * samples, dtype=torch.int16), torch.arange(clips + 1) * samples

    def steps() -> None:
        for _ in range(2):
            for last in (False, True):
                ranks.backward(ranks.forward(wave.to(options.device), offsets, last=last)["emotion"].square().sum())
            ranks.step(1e-5)

    if options.device.type == "cpu":
        return weights + allocated(steps)
    torch.cuda.reset_peak_memory_stats()
    steps()
    return float(torch.cuda.max_memory_allocated())


def allocated(work: Callable[[], None]) -> float:
    """The most bytes that the CPU's allocator has given out at a time, as torch's profiler saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    events: Any = seen.profiler
    now = most = 0.0
    for event in sorted(events.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*MODELS, SCALED_DOWN], help="default: all, on a GPU those of true size")
    parser.add_argument("--weights", type=Path, help="a folder with weights by the model's name, which it takes long to draw")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["bf16", "fp32"])
    parser.add_argument(
        "--strategies", nargs="+", choices=("ddp", "zero1", "zero2", "zero3"), default=["ddp"], help="of 1 rank"
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="audio of a micro-batch")
    parser.add_argument("--clip", type=float, default=5.0, help="seconds of each clip")
    parser.add_argument("--small-seconds", type=float, default=60.0, help="of the scaled-down check on a CPU")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    gpu = options.device.type == "cuda"
    told = about(options)
    print(
        f"{'GB':18}{'strategy':10}{'precision':10}{'checkpoints':12}{'standing':>9}{'a second':>10}{'peak':>8}{'measured':>10}"
    )
    for name in options.models or [*MODELS, *([] if gpu else [SCALED_DOWN])]:
        for chosen in options.strategies:
            for precision in options.precisions:
                for again in (False, True):
                    told["bytes"].append(row(name, chosen, precision, again, options))
                    if options.out:
                        write_json(options.out, told)
    return 0


def row(name: str, chosen: str, precision: str, again: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One line of the table, printed."""
    real = name != SCALED_DOWN
    seconds = options.seconds if real else options.small_seconds
    train = TrainSettings(precision=precision, strategy=chosen)
    given = (
        {"weights": str(options.weights / name)} if options.weights else {"weights": None, "config": MODELS.get(name, SMALL)}
    )
    model = build_classifier(EncoderModel.model_validate(given | {"dropout": 0.0}), 4, seed=0)
    found = stated(model, train, again, argparse.Namespace(**vars(options) | {"seconds": seconds}))
    if (options.device.type == "cuda" or not real) and chosen == "ddp":
        found["measured"] = measured(model, train, again, seconds, options)
    beside = f"{found['measured'] / 1e9:10.2f}" if "measured" in found else ""
    print(
        f"{name:18}{chosen:10}{precision:10}{'yes' if again else 'no':12}{found['standing'] / 1e9:9.2f}"
        f"{found['a_second'] / 1e9:10.4f}{found['peak'] / 1e9:8.2f}{beside}",
        flush=True,
    )
    return {"model": name, "strategy": chosen, "precision": precision, "checkpoints": again, **found}


def about(options: argparse.Namespace) -> dict[str, Any]:
    machine = {"architecture": platform.machine(), "cores": os.cpu_count(), "device": str(options.device)}
    machine |= {"gpu": torch.cuda.get_device_name()} if options.device.type == "cuda" else {}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    setting = {"seconds": options.seconds, "clip_s": options.clip, "small_seconds": options.small_seconds}
    return {"machine": machine | versions, **setting, "bytes": []}


if __name__ == "__main__":
    cli.run_main(main)
