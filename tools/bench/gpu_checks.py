"""Is packed training on a GPU exact, and does it never wait for the GPU?

    python tools/bench/gpu_checks.py [--size small] [--out checks.json]

exactness   logits and all gradients of a pack of clips against transformers' classifier in float64 on each clip alone:
            float64  at most 1e-10 apart
            bf16     at most three times as far from it as transformers' own bf16 on each clip alone (on a GPU; told, but
                     not judged, on a CPU, where a layer normalisation adds up the gradients of all frames in bf16)
waiting     how often an update makes the processor wait for the GPU (torch.cuda.set_sync_debug_mode), and at which lines

Distances are norms over everything, ‖a - b‖ / ‖b‖. The encoder's weights are moved away from their nearly linear initial state.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed.contenders import Ours
from speed.task import FAMILIES, SIZES, Clips, Task, configuration, draw_clips, draw_weights, quiet
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForAudioClassification

from ser_hpc import console
from ser_hpc.config.settings import EncoderModel, TrainSettings
from ser_hpc.engine import strategy
from ser_hpc.engine.world import World
from ser_hpc.files import write_json
from ser_hpc.models.classifier import Classifier, build

_FLOAT64, _BF16_SLACK = 1e-10, 3.0
_UPDATES = 4  # in which waiting is counted
Found = tuple[list[Tensor], dict[str, Tensor]]  # logits of each clip; gradients by transformers' names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    quiet()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report: dict[str, Any] = {"device": options.device, "size": options.size, "families": {}}
    with tempfile.TemporaryDirectory() as folder:
        draw_clips(16, 0, 1, Path(folder) / "shards", mean_s=2.0, std_s=1.5)
        for family in options.families:
            weights = Path(folder) / family
            draw_weights(configuration(family, options.size), 4, 0.0, weights)
            task = Task(weights, Path(folder) / "shards", options.device, "bf16", 8, False, 1, "wall", {})
            clips = Clips(task.shards)
            found: dict[str, Any] = {"distance": distances(task, clips)}
            found["exact"] = all(exact(options.device, **found["distance"][what]) for what in ("logits", "gradients"))
            if options.device == "cuda":
                found["waits_per_update"] = waits(task, clips)
            report["families"][family] = found
            print(family, found, flush=True)
            if options.out:
                write_json(options.out, report)
    return 0 if all(found["exact"] for found in report["families"].values()) else 1


def exact(device: str, *, float64: float, bf16: float, bf16_alone: float) -> bool:
    return float64 <= _FLOAT64 and (device == "cpu" or bf16 <= _BF16_SLACK * bf16_alone)


def distances(task: Task, clips: Clips) -> dict[str, dict[str, float]]:
    """From float64 on each clip alone: of logits and of gradients."""
    model_class: Any = AutoModelForAudioClassification
    theirs = model_class.from_pretrained(task.weights).to(task.device).double().train()
    generator = torch.Generator().manual_seed(2)
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator).to(task.device)
    ours = build(EncoderModel(weights=str(task.weights)), 4, seed=0).double().train()
    prefix = "encoder" if task.whisper else theirs.base_model_prefix
    ours.encoder.load_state_dict({k: v for k, v in getattr(theirs, prefix).state_dict().items() if k != "masked_spec_embed"})
    for name in ("projector", "classifier"):
        getattr(ours.head, name).load_state_dict(getattr(theirs, name).state_dict())
    ours.to(task.device)

    given = [features(ours, task, torch.from_numpy(wave)) for wave in clips.waves]
    truth = alone(theirs, given, task, clips.targets, half=False)
    double = packed(ours, clips, prefix, None)
    bf16_alone = alone(theirs.float(), given, task, clips.targets, half=True)
    settings = TrainSettings.model_validate({"precision": "bf16"})
    bf16 = packed(
        ours.float(), clips, prefix, strategy.build(ours, settings, World(0, 1, 0, 1, torch.device(task.device)), None)
    )
    others = {"float64": double, "bf16": bf16, "bf16_alone": bf16_alone}
    return {
        "logits": {name: distance(other[0], truth[0]) for name, other in others.items()},
        "gradients": {name: distance([other[1][k] for k in truth[1]], truth[1].values()) for name, other in others.items()},
    }


def features(ours: Classifier, task: Task, wave: Tensor) -> Tensor:
    """One clip's, float64: normalised; or the spectrogram that ours feeds Whisper's encoder with, which tests compare."""
    if not task.whisper:
        x = wave.to(task.device).double() / 32768
        return ((x - x.mean()) / (x.var(correction=0) + 1e-7).sqrt())[None]
    seen: list[Tensor] = []
    hook = ours.encoder.get_submodule("conv1").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        ours(wave, torch.tensor([0, len(wave)]))
    hook.remove()
    return seen[0][:, :, : 2 * -(-len(wave) // 320)]


def alone(theirs: Any, given: list[Tensor], task: Task, targets: np.ndarray, *, half: bool) -> Found:
    theirs.zero_grad()
    rows = []
    for x, target in zip(given, targets.tolist(), strict=True):
        if task.whisper:
            positions = x.shape[-1] // 2
            theirs.encoder.config.max_source_positions = theirs.encoder.embed_positions.num_embeddings = positions
        with torch.autocast(task.device, torch.bfloat16) if half else nullcontext():
            row = theirs(x.to(next(theirs.parameters()).dtype)).logits
        rows.append(row[0].detach())
        F.cross_entropy(row.float() if half else row, torch.tensor([target], device=row.device)).backward()  # type: ignore[no-untyped-call]
    return rows, {name: p.grad.clone() for name, p in theirs.named_parameters() if p.grad is not None}


def packed(ours: Classifier, clips: Clips, prefix: str, ranks: Any) -> Found:
    """All clips in one pack; by a strategy of the engine, or else as they are."""
    offsets = torch.tensor([0, *(len(wave) for wave in clips.waves)]).cumsum(0)
    samples = torch.from_numpy(np.concatenate(clips.waves))
    ours.zero_grad()
    logits = (ours if ranks is None else ranks.forward)(samples, offsets)["emotion"]
    loss = F.cross_entropy(logits, torch.from_numpy(clips.targets).to(logits.device), reduction="sum")
    loss.backward() if ranks is None else ranks.backward(loss)  # type: ignore[no-untyped-call]
    named = (ours if ranks is None else ranks.module).named_parameters()
    theirs = ((k.removeprefix("head.") if k.startswith("head.") else prefix + k.removeprefix("encoder"), p) for k, p in named)
    return list(logits.detach()), {name: p.grad.clone() for name, p in theirs if p.grad is not None}


def distance(found: Iterable[Tensor], truth: Iterable[Tensor]) -> float:
    pairs = [(a.double(), b.double()) for a, b in zip(found, truth, strict=True)]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((apart / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5)


def waits(task: Task, clips: Clips) -> dict[str, float]:
    """Where the processor waited for the GPU, and how often in an update; lines of this package and of torch."""
    ours = Ours(task, clips)
    warm_up, positions = clips.drawn(0, task.update)
    ours.train(warm_up, positions)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            ours.train(warm_up, np.tile(warm_up, _UPDATES - 1))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    return {place: count / _UPDATES for place, count in places.most_common()}


if __name__ == "__main__":
    console.run(main)
