"""Training on packed clips against its alternatives on this machine's CPU, side by side: useful audio-seconds per second.

python tools/bench/packed_cpu.py [--families wav2vec2 wavlm] [--clips 24] [--repeats 5] [--out packed_cpu.json]

packed       this package: micro-batches of `--budget` seconds of audio, from int16 samples to the updated weights
alone        transformers, each clip by itself, those of equal length together: no padding, the least work that it can do
random 8     transformers, padded batches of 8 clips as they come, with an attention mask
grouped 8    the same, clips sorted by length before they are cut into batches
padded 30 s  Whisper alone: transformers, batches of 8, every clip padded to 30 s; `alone` has an encoder cut to each length

A repeat draws new clips (log-normal lengths, mean 4.5 s, standard deviation 3.1 s, as in IEMOCAP; 0.6 to 30 s) and gives every
contender the same ones, one after another, for one update of AdamW over all of them. The others get their features ready-made
(normalised waveforms, log-Mel spectrograms), this package makes its own. The encoders are small and random (about half a
million weights a layer); all contenders of a family have the same ones, and their losses are compared before timing.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ser_hpc import console
from ser_hpc.config.settings import EncoderModel
from ser_hpc.files import write_json
from ser_hpc.models.classifier import Classifier, build

RATE = 16_000
CLASSES = 4
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024, "conv_dim": [128] * 7,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "wav2vec2": {"model_type": "wav2vec2", **SHAPE},
    "wav2vec2-large": {"model_type": "wav2vec2", **SHAPE, **LARGE},
    "hubert": {"model_type": "hubert", **SHAPE},
    "wavlm": {"model_type": "wavlm", **SHAPE},
    "wavlm-large": {"model_type": "wavlm", **SHAPE, **LARGE},
    "whisper": {
        "model_type": "whisper", "d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024,
        "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    },
}  # fmt: skip
Clip = tuple[Tensor, int]  # int16 samples and a class
Loss = Callable[[list[Clip]], Tensor]  # summed over these clips


def drawn(generator: np.random.Generator, count: int) -> list[Clip]:
    spread = np.sqrt(np.log(1 + (3.1 / 4.5) ** 2))
    seconds = generator.lognormal(np.log(4.5) - spread**2 / 2, spread, count).clip(0.6, 30)
    noise = [generator.normal(0, 3000, int(s * RATE)).clip(-32768, 32767).astype(np.int16) for s in seconds]
    return [(torch.from_numpy(wave), int(generator.integers(CLASSES))) for wave in noise]


class Ours:
    """This package's classifier, micro-batches filled in order of length up to a budget of seconds."""

    def __init__(self, model: Classifier, budget_s: float) -> None:
        self.model, self.budget = model, budget_s * RATE

    def prepared(self, clips: list[Clip]) -> list[list[Clip]]:
        batches: list[list[Clip]] = [[]]
        for clip in sorted(clips, key=lambda clip: -len(clip[0])):
            if batches[-1] and sum(len(wave) for wave, _ in batches[-1]) + len(clip[0]) > self.budget:
                batches.append([])
            batches[-1].append(clip)
        return batches

    def loss(self, batch: list[Clip]) -> Tensor:
        offsets = torch.tensor([0, *(len(wave) for wave, _ in batch)]).cumsum(0)
        logits = self.model(torch.cat([wave for wave, _ in batch]), offsets)["emotion"]
        return F.cross_entropy(logits, torch.tensor([label for _, label in batch]), reduction="sum")


class Theirs:
    """transformers' encoder under the same head. Features are made in `prepared`, which is not timed."""

    def __init__(self, model: Classifier, encoder: Any, batching: str) -> None:
        self.model, self.encoder, self.batching = model, encoder, batching
        self.whisper = encoder.config.model_type == "whisper"
        self.mel: Any = transformers.WhisperFeatureExtractor() if self.whisper else None  # type: ignore[no-untyped-call]
        self.cut: dict[int, Any] = {}

    def batches(self, clips: list[Clip]) -> Iterator[list[Clip]]:
        if self.batching in ("alone", "grouped 8"):
            clips = sorted(clips, key=lambda clip: -len(clip[0]))
        if self.batching == "alone":
            by_length: dict[int, list[Clip]] = {}
            for clip in clips:
                by_length.setdefault(len(clip[0]), []).append(clip)
            yield from by_length.values()
        else:
            yield from (clips[i : i + 8] for i in range(0, len(clips), 8))

    def prepared(self, clips: list[Clip]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Features, the samples (Whisper: frames) of each clip, classes."""
        return [self.features(batch) for batch in self.batches(clips)]

    def features(self, batch: list[Clip]) -> tuple[Tensor, Tensor, Tensor]:
        waves, labels = [wave.float() / 32768 for wave, _ in batch], torch.tensor([label for _, label in batch])
        lengths = torch.tensor([len(wave) for wave in waves])
        if self.whisper:
            given = [wave.numpy() for wave in waves]
            mel = self.mel(given, sampling_rate=RATE, return_tensors="pt").input_features
            frames = -(-lengths // 320)
            return (mel[:, :, : 2 * int(frames.max())] if self.batching == "alone" else mel), frames, labels
        normal = [(wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt() for wave in waves]
        return torch.nn.utils.rnn.pad_sequence(normal, batch_first=True), lengths, labels

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, lengths, labels = batch
        if self.whisper:
            frames, states = lengths, self.shortened(x.shape[-1] // 2)(x).last_hidden_state
        else:
            frames = self.encoder._get_feat_extract_output_lengths(lengths)
            ragged = bool((lengths < x.shape[1]).any())
            mask = (torch.arange(x.shape[1]) < lengths[:, None]).long() if ragged else None
            states = self.encoder(x, attention_mask=mask).last_hidden_state
        head: Any = self.model.head
        real = (torch.arange(states.shape[1]) < frames[:, None])[..., None]
        pooled = (head.projector(states) * real).sum(1) / frames[:, None]
        return F.cross_entropy(head.classifier(pooled), labels, reduction="sum")

    def shortened(self, positions: int) -> Any:
        """The same encoder for so many positions: transformers refuses any other length than its configuration's."""
        self.encoder.config.max_source_positions = self.encoder.embed_positions.num_embeddings = positions
        return self.encoder


def contenders(family: str, budget_s: float) -> dict[str, Ours | Theirs]:
    settings = EncoderModel(weights=None, config=CONFIGS[family], dropout=0.0)
    model = build(settings, CLASSES, seed=0).train()
    found: dict[str, Ours | Theirs] = {"packed": Ours(model, budget_s)}
    model_class: Any = transformers.AutoModel
    batchings = ("alone", "padded 30 s") if family == "whisper" else ("alone", "random 8", "grouped 8")
    for batching in batchings:
        other = copy.deepcopy(model)
        shape: Any = transformers.AutoConfig.for_model(**CONFIGS[family], mask_time_prob=0.0, mask_feature_prob=0.0)
        for name in shape.to_dict():
            if name.endswith(("dropout", "layerdrop")):
                setattr(shape, name, 0.0)
        encoder: Any = WhisperEncoder(shape) if family == "whisper" else model_class.from_config(shape)
        encoder.load_state_dict(model.encoder.state_dict())
        other.encoder = encoder
        found[batching] = Theirs(other.train(), encoder, batching)
    return found


def update(
    contender: Ours | Theirs, optimizer: torch.optim.Optimizer, batches: Any, clock: Callable[[], float]
) -> tuple[float, float]:
    """The mean loss before, and the seconds that it took."""
    start, total, count = clock(), 0.0, 0
    for batch in batches:
        loss = contender.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        total, count = total + loss.item(), count + len(batch[-1] if isinstance(batch, tuple) else batch)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total / count, clock() - start


def measured(family: str, options: argparse.Namespace) -> dict[str, Any]:
    systems = contenders(family, options.budget)
    optimizers = {name: torch.optim.AdamW(one.model.parameters(), lr=0.0) for name, one in systems.items()}
    rates: dict[str, list[float]] = {name: [] for name in systems}
    losses: dict[str, float] = {}
    generator = np.random.default_rng(options.seed)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    for repeat in range(options.repeats + 1):
        clips = drawn(generator, options.clips)
        seconds = sum(len(wave) for wave, _ in clips) / RATE
        order = list(systems)
        order = order[repeat % len(order) :] + order[: repeat % len(order)]  # nobody always goes first
        for name in order:
            losses[name], took = update(systems[name], optimizers[name], systems[name].prepared(clips), clock)
            if repeat:  # the first warms up
                rates[name].append(seconds / took)
    ratios = {name: [ours / theirs for ours, theirs in zip(rates["packed"], rates[name], strict=True)] for name in systems}
    return {"losses": losses, "rates": rates, "packed_over": ratios}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--clips", type=int, default=24, help="of an update")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=40.0, help="seconds of audio in a packed micro-batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine with other work, 1 thread")
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    results = {}
    print(f"{'encoder':16}{'':14}{'audio-s/s':>10}   packed is faster by: median [least, most]")
    for family in options.families:
        results[family] = measured(family, options)
        for name, rates in results[family]["rates"].items():
            ratios = results[family]["packed_over"][name]
            versus = "" if name == "packed" else f"{median(ratios):13.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            print(f"{family:16}{name:14}{median(rates):10.1f}{versus}", flush=True)
    if options.out:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        machine = {"architecture": platform.machine(), "cores": os.cpu_count(), **versions}
        setting = {
            "clips": options.clips,
            "budget_s": options.budget,
            "threads": options.threads,
            "seed": options.seed,
            "clock": options.clock,
        }
        write_json(options.out, {"machine": machine, **setting, "families": results})
    return 0


if __name__ == "__main__":
    console.run(main)
