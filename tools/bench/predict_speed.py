"""Predict the same clips with the same weights: this package against transformers' pipeline, each with its best batches.

python tools/bench/predict_speed.py /data/emodb [--family whisper] [--clips 16] [--rounds 3] [--out predict_speed.json]

Clips of the lengths of real corpora (log-normal about 3.2 s, 0.8 to 12 s) are cut out of a folder's joined recordings, and both
are given their samples in memory. The weights are random, of the published base model's shape, which changes no time. Each
contender first tries its batch sizes once; then both take turns in one process, on one thread, in CPU seconds. Under a group
norm (wav2vec2) the pipeline's outputs change with its batches; its Whisper pads every clip to 30 s: there is no other.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForAudioClassification, WhisperFeatureExtractor, pipeline

from ser_hpc.config.heads import MeanPoolSettings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.corpora.parse_result import find_recordings
from ser_hpc.inference.folder import empty_model, read_model, write_model
from ser_hpc.inference.predictor import Predictor
from ser_hpc.inference.spec import Member, ModelSpec
from ser_hpc.shards import RATE, audio
from ser_hpc.tasks.targets import ClassTarget, softmax

CLASSES = ("anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness")
SHAPES: dict[str, dict[str, Any]] = {
    "wav2vec2": {"model_type": "wav2vec2", "mask_time_prob": 0.0},  # transformers' defaults are the base model's
    "whisper": {
        "model_type": "whisper", "d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048,
        "decoder_layers": 6, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048,
    },
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="a folder of sound files")
    parser.add_argument("--family", choices=SHAPES, default="wav2vec2")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = make_clips(options.recordings, options.clips)
    seconds = sum(map(len, clips)) / RATE
    with tempfile.TemporaryDirectory() as folder:
        spec = write_random(Path(folder), options.family)
        contenders = {"ser_hpc": ours(Path(folder), clips), "transformers": theirs(Path(folder), options.family, clips)}
        rates: dict[str, Any] = {}
        best: dict[str, Callable[[], np.ndarray]] = {}
        for name, by_batch in contenders.items():
            tried = {batch: timed(run) for batch, run in by_batch.items()}
            chosen = min(tried, key=tried.__getitem__)
            best[name] = by_batch[chosen]
            rates[name] = {"tried": {batch: round(seconds / took, 2) for batch, took in tried.items()}, "batch": chosen}
        turns: dict[str, list[float]] = {name: [] for name in best}
        for _ in range(options.rounds):
            for name, run in best.items():
                turns[name].append(seconds / timed(run))
        gap = float(np.abs(by_one(contenders["transformers"]) - best["ser_hpc"]()).max())
    for name, each in turns.items():
        rates[name]["audio_s_per_cpu_s"] = [round(rate, 2) for rate in each]
    faster = [ours_ / theirs_ for ours_, theirs_ in zip(turns["ser_hpc"], turns["transformers"], strict=True)]
    chosen = f"--family {options.family} --clips {options.clips} --rounds {options.rounds}"
    report = {
        "command": f"python tools/bench/predict_speed.py {options.recordings} {chosen}",
        "machine": {"device": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "family": options.family, "parameters": spec, "clips": len(clips), "seconds": round(seconds, 1),
        "longest_s": round(max(map(len, clips)) / RATE, 2), "rates": rates,
        "times_as_fast": round(median(faster), 2), "times_as_fast_by_round": [round(each, 2) for each in faster],
        "largest_difference_of_probabilities": gap if options.family != "whisper" else None,
    }  # fmt: skip
    print(report)
    if options.out:
        write_json(options.out, report)
    return 0


def make_clips(folder: Path, count: int) -> list[np.ndarray]:
    """Cut clips, int16, of drawn lengths out of a folder's recordings."""
    rng = np.random.default_rng(0)
    lengths = (np.clip(3.2 * np.exp(0.5 * rng.standard_normal(count)), 0.8, 12) * RATE).astype(int)
    found = find_recordings(folder)
    step, joined = max(1, len(found) // 200), np.zeros(0, np.int16)
    for path in found[::step]:
        joined = np.concatenate([joined, audio.decode(path).samples])
        if len(joined) > lengths.sum():
            break
    return np.split(joined[: lengths.sum()], np.cumsum(lengths)[:-1])


def write_random(folder: Path, family: str) -> int:
    """Write a model of random weights as it is exported; returns its number of weights."""
    model = EncoderModel(weights=None, config=SHAPES[family], head=MeanPoolSettings(), normalize=True)
    spec = ModelSpec(model, {"emotion": ClassTarget(CLASSES)}, {}, None, (Member(0, 0, 0.0, {}),))
    torch.manual_seed(0)
    module = empty_model(spec, [0])
    write_model(folder, spec, module)
    return sum(parameter.numel() for parameter in module.parameters())


def ours(folder: Path, clips: list[np.ndarray]) -> dict[str, Callable[[], np.ndarray]]:
    """This package, by seconds of sound in a batch."""

    def run(seconds: float) -> Callable[[], np.ndarray]:
        predictor = Predictor(*read_model(folder), "", "cpu", seconds)
        return lambda: softmax(predictor.outputs(clips)["emotion"])

    return {f"{seconds:g} s": run(seconds) for seconds in (5, 20)}


def theirs(folder: Path, family: str, clips: list[np.ndarray]) -> dict[str, Callable[[], np.ndarray]]:
    """transformers' pipeline, by clips in a batch; Whisper by its own class, of as many weights."""
    if family == "whisper":
        config = AutoConfig.for_model(**SHAPES[family], num_labels=len(CLASSES))
        extractor = WhisperFeatureExtractor(feature_size=80)  # type: ignore[no-untyped-call]
        classify = pipeline(
            "audio-classification", AutoModelForAudioClassification.from_config(config), feature_extractor=extractor, top_k=None
        )
    else:
        classify = pipeline("audio-classification", str(folder), top_k=None)
    names = [classify.model.config.id2label[i] for i in range(len(CLASSES))]
    sounds = [clip.astype(np.float32) / 32768 for clip in clips]

    def run(batch: int) -> Callable[[], np.ndarray]:
        def probabilities() -> np.ndarray:
            found = ({each["label"]: each["score"] for each in clip} for clip in classify(sounds, batch_size=batch))
            return np.array([[of[name] for name in names] for of in found])

        return probabilities

    return {str(batch): run(batch) for batch in (1, 4)}


def by_one(runs: dict[str, Callable[[], np.ndarray]]) -> np.ndarray:
    """The pipeline's probabilities, clip by clip."""
    return runs["1"]()


def timed(run: Callable[[], object]) -> float:
    """CPU seconds of one thread: what else runs on the machine is not in them."""
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    cli.run_main(main)
