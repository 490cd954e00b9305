"""What no CPU can tell: is packed training on a GPU exact, does it never wait for the GPU, does the GPU do what it is told?

    python tools/bench/gpu_checks.py [--size small] [--only zero attention_dropout ...] [--out checks.json]

Of every family (`--families`; none: only what follows):
exactness   logits and all gradients of a pack of clips, together and layer by layer, against transformers' classifier in
            float64 on each clip alone:
            float64  at most 1e-10 apart
            bf16     at most three times as far from it as transformers' own bf16 on each clip alone (on a GPU; told, but
                     not judged, on a CPU, where a layer normalisation adds up the gradients of all frames in bf16)
waiting     how often an update makes the processor wait for the GPU (torch.cuda.set_sync_debug_mode), and at which lines

Once: each function in CHECKS, whose first line says what must hold. Those in ON_CPU run everywhere, to see that they do.
Each result is printed, and the JSON written anew, when it is there; what a check raises is its result.

Distances are norms over everything, ‖a - b‖ / ‖b‖. The encoder's weights are moved away from their nearly linear initial state.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from ser_hpc.run.rank import prepare_allocator

if "torch" not in sys.modules:
    prepare_allocator(os.environ)  # as in training
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as gpu.reproducible does, before other checks use cuBLAS

import numpy as np
import torch
import torch.distributed as dist
from speed.contenders import Ours
from speed.task import FAMILIES, SIZES, Clips, Task, configuration, draw_clips, draw_weights, quiet
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForAudioClassification

from ser_hpc.config.settings import EncoderModel, Settings, TrainSettings
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.core.errors import UserError
from ser_hpc.data.sampler import BatchSpec, ClipSelection, step_micro_batches
from ser_hpc.engine import gpu, precision
from ser_hpc.engine.distributed import build
from ser_hpc.engine.distributed.world import World, need_group
from ser_hpc.engine.step import accumulate_gradients
from ser_hpc.models.classifier import Classifier, build_classifier
from ser_hpc.models.encoders.packed_attention import has_kernel, packed_attention
from ser_hpc.models.packed import Packing
from ser_hpc.run.run_dir import RunDir

_FLOAT64, _BF16_SLACK = 1e-10, 3.0
_SMALL = (
    1e-3  # of the whole gradient's root mean square: below that a layer's is rounding alone, as that of an attention's keys
)
_UPDATES = 4  # in which waiting is counted
Found = tuple[list[Tensor], dict[str, Tensor]]  # logits of each clip; gradients by transformers' names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--only", nargs="*", choices=list(CHECKS), default=list(CHECKS), help="of the checks that run once")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="also keep it as JSON")
    options = parser.parse_args()
    quiet()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if options.device == "cuda":
        gpu.set_up_gpu(torch.device("cuda", 0))
    report: dict[str, Any] = {"device": options.device, "size": options.size, "families": {}, "checks": {}}

    def look(kind: str, name: str, check: Callable[[Task, Clips], dict[str, Any]], task: Task) -> None:
        began = time.monotonic()
        try:
            found = check(task, Clips(task.shards))
        except Exception as error:  # whatever it is: the next check is to be made all the same
            traceback.print_exc()
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
        report[kind][name] = found | {"seconds": round(time.monotonic() - began, 1)}
        print(name, report[kind][name], flush=True)
        gpu.release_cached_memory(torch.device(options.device))
        if options.out:
            write_json(options.out, report)

    with tempfile.TemporaryDirectory() as folder:
        draw_clips(16, 0, 1, Path(folder) / "shards", mean_s=2.0, std_s=1.5)

        def task(family: str, dropout: float) -> Task:
            weights = Path(folder) / f"{family}-{dropout}"
            if not weights.exists():
                draw_weights(configuration(family, options.size), 4, dropout, weights)
            return Task(weights, Path(folder) / "shards", options.device, "bf16", 8, False, 1, "wall", {})

        for name in options.only:
            if options.device == "cuda" or name in ON_CPU:
                family, dropout, check = CHECKS[name]
                look("checks", name, check, task(family, dropout))
        for family in options.families:
            look("families", family, exactness, task(family, 0.0))
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0 if all(found["ok"] for kind in ("checks", "families") for found in report[kind].values()) else 1


def exactness(task: Task, clips: Clips) -> dict[str, Any]:
    found: dict[str, Any] = {"distance": distances(task, clips)}
    layers = found["distance"].pop("layers")
    found["exact"] = all(exact(task.device, **found["distance"][what]) for what in ("logits", "gradients"))
    found["inexact_layers"] = {name: of for name, of in layers.items() if not exact(task.device, **of)}
    found["worst_layers"] = dict(sorted(layers.items(), key=lambda layer: -layer[1]["bf16"] / layer[1]["bf16_alone"])[:3])
    if task.device == "cuda":
        found["waits_per_update"] = waits(task, clips)
    return {"ok": found["exact"] and not found["inexact_layers"], **found}


def exact(device: str, *, float64: float, bf16: float, bf16_alone: float) -> bool:
    return float64 <= _FLOAT64 and (device == "cpu" or bf16 <= _BF16_SLACK * bf16_alone)


def distances(task: Task, clips: Clips) -> dict[str, Any]:
    """From float64 on each clip alone: of logits, of gradients, and of each layer's gradients."""
    model_class: Any = AutoModelForAudioClassification
    theirs = model_class.from_pretrained(task.weights).to(task.device).double().train()
    generator = torch.Generator().manual_seed(2)
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator).to(task.device)
    ours = build_classifier(EncoderModel(weights=str(task.weights)), 4, seed=0).double().train()
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
        ours.float(), clips, prefix, build.build_strategy(ours, settings, World(0, 1, 0, 1, torch.device(task.device)), None)
    )
    others = {"float64": double, "bf16": bf16, "bf16_alone": bf16_alone}
    layers: dict[str, list[str]] = defaultdict(list)
    for name in truth[1]:
        layers[name.partition(".parametrizations")[0].removesuffix(".weight").removesuffix(".bias")].append(name)
    count = sum(grad.numel() for grad in truth[1].values())
    usual = (sum(float(grad.double().square().sum()) for grad in truth[1].values()) / count) ** 0.5

    def of(names: Iterable[str]) -> dict[str, float]:
        return {key: distance([other[1][k] for k in names], [truth[1][k] for k in names]) for key, other in others.items()}

    def counts(names: list[str]) -> bool:
        return max(float(truth[1][name].double().square().mean()) ** 0.5 for name in names) > _SMALL * usual

    return {
        "logits": {name: distance(other[0], truth[0]) for name, other in others.items()},
        "gradients": of(truth[1]),
        "layers": {layer: of(names) for layer, names in layers.items() if counts(names)},
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
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, truth, strict=True)]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((apart / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5)


def waits(task: Task, clips: Clips) -> dict[str, float]:
    """Where the processor waited for the GPU, and how often in an update; lines of this package and of torch."""
    ours = Ours(task, clips)
    warm_up, positions = clips.drawn(0, task.update)
    ours.train(warm_up, positions)
    return waited(lambda: ours.train(warm_up, np.tile(warm_up, _UPDATES - 1)), _UPDATES)


def waited(work: Callable[[], object], times: int) -> dict[str, float]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    return {place: count / times for place, count in places.most_common()}


def device_of(task: Task) -> torch.device:
    return torch.device("cuda", 0) if task.device == "cuda" else torch.device("cpu")


class Steps:
    """Training on all clips in one micro-batch, by a strategy of the engine, in `task.precision` or another of `train`."""

    def __init__(self, task: Task, clips: Clips, **train: Any) -> None:
        told = {"precision": task.precision, "clip_norm": None, **train}
        self.settings = TrainSettings.model_validate(told)
        self.model = build_classifier(EncoderModel(weights=str(task.weights)), 4, seed=0)
        self.ranks = build.build_strategy(self.model, self.settings, World(0, 1, 0, 1, device_of(task)), None)
        self.targets = torch.from_numpy(clips.targets).to(device_of(task))
        self.samples = torch.from_numpy(np.concatenate(clips.waves)).to(device_of(task))
        self.offsets = torch.tensor([0, *(len(wave) for wave in clips.waves)]).cumsum(0)

    def run(self, count: int, *, micros: int = 1) -> list[Tensor]:
        """Each step's loss, and the last one's gradients before it."""
        self.ranks.train_mode(True)
        losses = []
        for number in range(count):
            torch.manual_seed(number)
            for micro in range(micros):
                logits = self.ranks.forward(self.samples, self.offsets, last=micro == micros - 1)["emotion"]
                loss = F.cross_entropy(logits, self.targets)
                self.ranks.backward(loss / micros)
            losses.append(loss.detach())
            self.ranks.step(1e-4)
        return losses


def allocator(task: Task, clips: Clips) -> dict[str, Any]:
    """Memory is one piece that grows, unless the user said otherwise."""
    torch.zeros(1, device="cuda")
    told = torch.cuda.memory._snapshot()["allocator_settings"]
    return {"ok": bool(told["expandable_segments"]), "told": {key: str(value) for key, value in told.items()}}


def precision_auto(task: Task, clips: Clips) -> dict[str, Any]:
    """`auto` is bf16 with TF32 on sm80 and newer, else fp32."""
    with tempfile.TemporaryDirectory() as run:
        settled = precision.choose_precision(Settings(), RunDir(Path(run)), World(0, 1, 0, 1, device_of(task)))
    found = (settled.train.precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")
    wanted = ("bf16", "high") if precision.has_bf16(device_of(task)) else ("fp32", "highest")
    return {"ok": found == wanted, "found": found}


def attention_dropout(task: Task, clips: Clips) -> dict[str, Any]:
    """The kernel is exact at p = 0; at p it drops a part p, scales the rest, and its backward pass drops the same."""
    p, heads, width, lengths = 0.25, 4, 64, (300, 17, 256, 64)
    packing, generator = Packing(lengths, device_of(task)), torch.Generator(task.device).manual_seed(0)
    q, k, v, grad = (
        torch.randn(sum(lengths), heads, width, device=task.device, generator=generator).bfloat16().requires_grad_()
        for _ in range(4)
    )
    kernel = has_kernel(device_of(task), torch.bfloat16, width)
    parts = [[x[a:b].double().transpose(0, 1) for x in (q, k, v)] for a, b in zip(packing.ends, packing.ends[1:], strict=False)]
    truth = torch.cat([F.scaled_dot_product_attention(*part, scale=0.125).transpose(0, 1) for part in parts])
    apart = distance([packed_attention(packing, q, k, v, 0.125)], [truth])
    # Values of one give each query's sum of kept weights: 1 on average. And <grad, out(v)> = <v, dv> if both drop the same.
    torch.manual_seed(1)
    sums = packed_attention(packing, q, k, torch.ones_like(v), 0.125, p)[..., 0].float()
    torch.manual_seed(2)
    dropped = packed_attention(packing, q, k, v, 0.125, p)
    dropped.backward(grad)
    assert v.grad is not None
    products = [float((a.detach().double() * b.detach().double()).sum()) for a, b in ((grad, dropped), (v, v.grad))]
    scale = float(grad.double().norm() * dropped.double().norm())
    torch.manual_seed(2)
    again = bool(torch.equal(dropped, packed_attention(packing, q, k, v, 0.125, p)))
    one_key = packed_attention(
        Packing((1,) * 2000, device_of(task)), *(torch.ones(2000, heads, width, device=task.device).bfloat16(),) * 3, 1.0, p
    )
    kept = float((one_key[..., 0] > 0).float().mean())  # of weights that are 1: kept ones are 1 / (1 - p), the others 0
    ok = apart < 0.01 and abs(float(sums.mean()) - 1) < 0.02 and abs(products[0] - products[1]) < 0.01 * scale and again
    ok = ok and abs(kept - (1 - p)) < 0.03 and abs(float(one_key.max()) - 1 / (1 - p)) < 0.01
    return {
        "ok": ok,
        "kernel": kernel,
        "apart": apart,
        "mean": float(sums.mean()),
        "products": products,
        "again": again,
        "kept": kept,
    }


def kernels(task: Task, clips: Clips) -> dict[str, Any]:
    """With real dropouts one attention call serves all clips of a layer, in training; WavLM's never is cuDNN's."""
    steps = Steps(task, clips)
    steps.run(1)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        steps.run(1)
        with torch.no_grad():
            steps.ranks.train_mode(False)
            steps.ranks.forward(steps.samples, steps.offsets)
    names = Counter({event.key: event.count for event in seen.key_averages() if "attention" in event.key})
    ok = not any("cudnn" in name for name in names)
    if task.config.model_type != "wavlm" and has_kernel(device_of(task), torch.bfloat16, 64):
        ok = ok and names["aten::_flash_attention_forward"] == 2 * task.config.num_hidden_layers
    return {"ok": ok, "calls": dict(names)}


def fourier_plans(task: Task, clips: Clips) -> dict[str, Any]:
    """Batches of any lengths leave few plans of cuFFT, and little memory beside torch's."""
    steps, rng = Steps(task, clips), np.random.default_rng(0)
    device, cache = device_of(task), torch.backends.cuda.cufft_plan_cache

    def outside() -> int:
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free - torch.cuda.memory_reserved(device))

    steps.run(1)
    before = outside()
    for _ in range(60):
        lengths = rng.integers(6_000, 60_000, rng.integers(1, 9)).tolist()
        samples = torch.zeros(sum(lengths), dtype=torch.int16, device=device)
        steps.ranks.backward(steps.ranks.forward(samples, torch.tensor([0, *lengths]).cumsum(0), last=True)["emotion"].sum())
    torch.cuda.synchronize()
    grown = outside() - before
    return {"ok": cache.size <= cache.max_size <= gpu.PLANS and grown < 2e8, "plans": cache.size, "bytes_outside": grown}


def filter_gradients(task: Task, clips: Clips) -> dict[str, Any]:
    """The gradient of what is repeated over a clip's frames is its sum, the same every time, not one of bf16 atomics."""
    packing = Packing((1500, 225, 700), device_of(task))
    generator = torch.Generator(task.device).manual_seed(0)
    grad = (1 + torch.randn(packing.total, 10, 512, device=task.device, generator=generator)).bfloat16()
    found = []
    for _ in range(2):
        x = torch.zeros(3, 10, 512, device=task.device, dtype=torch.bfloat16, requires_grad=True)
        packing.repeated(x).backward(grad)
        found.append(x.grad)
    apart = distance([found[0]], [torch.stack([part.double().sum(0) for part in grad.split(packing.lengths)])])
    return {"ok": apart < 4e-3 and bool(torch.equal(*found)), "apart": apart}


def zero(task: Task, clips: Clips) -> dict[str, Any]:
    """ZeRO 1, 2 and 3 on one rank train as DDP does, within bf16's rounding."""
    if find_spec("deepspeed") is None:
        return {"ok": True, "skipped": "deepspeed is not installed"}
    losses = {}
    for name in ("ddp", "zero1", "zero2", "zero3"):
        steps = Steps(task, clips, strategy=name)
        losses[name] = [float(loss) for loss in steps.run(4)]
        steps.ranks.close()
    apart = max(abs(a - b) for name in losses for a, b in zip(losses["ddp"], losses[name], strict=True))
    return {"ok": apart < 0.05, "losses": losses}


def ddp(task: Task, clips: Clips) -> dict[str, Any]:
    """DDP on one rank: no wait in a step, and the gradients of accumulated micro-batches live in its buckets alone."""
    steps = Steps(task, clips)
    need_group(World(0, 1, 0, 1, device_of(task)))
    ranks: Any = steps.ranks
    ranks._parallel = ranks._distributed(steps.model)
    steps.run(3, micros=2)
    where = waited(lambda: steps.run(2, micros=2), 2) if task.device == "cuda" else {}
    storages = {
        p.grad.untyped_storage().data_ptr(): p.grad.untyped_storage().nbytes()
        for p in steps.model.parameters()
        if p.grad is not None
    }
    trained = sum(p.numel() * 4 for p in steps.model.parameters() if p.requires_grad)
    return {
        "ok": not where and sum(storages.values()) <= 1.05 * trained,
        "waits_per_update": where,
        "gradients": sum(storages.values()) / trained,
    }


def out_of_memory(task: Task, clips: Clips) -> dict[str, Any]:
    """A step for which memory does not suffice is given up, and a smaller one then goes well."""
    ours = Ours(task, clips)
    ours.ranks.train_mode(True)
    total = torch.cuda.get_device_properties(0).total_memory

    def step(most: float) -> bool:
        cut = BatchSpec(1, round(most * 16_000))
        draws = [ClipSelection(np.tile(np.arange(len(clips)), 8))]
        micros = list(chain.from_iterable(step_micro_batches(draws, ours.costs, cut, 0)))
        batches = list(ours.source.prefetch(iter(micros), training=True))
        at = draws[0]
        return accumulate_gradients(ours.ranks, ours.objective, batches, at, (0, 0), ours.world, ours.statistics) is not None

    small = float(ours.costs.max()) / 16_000
    torch.cuda.reset_peak_memory_stats()
    step(small)
    ours.ranks.step(0.0)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.max_memory_allocated() * 1.2 + 5e7) / total)
    try:
        large = step(1e6)
        ours.ranks.discard_step()
        return {"ok": not large and step(small), "large": large}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def reproducible(task: Task, clips: Clips) -> dict[str, Any]:
    """With train.deterministic two trainings are bit-equal; how far they are apart without, and what it costs."""
    found: dict[str, Any] = {}
    for wanted in (False, True):
        gpu.set_deterministic(wanted)
        weights, seconds = [], 0.0
        try:
            with gpu.explain_missing_kernels():
                for _ in range(2):
                    steps = Steps(task, clips)
                    steps.run(1)
                    began = time.perf_counter()
                    float(steps.run(4)[-1])
                    seconds += time.perf_counter() - began
                    weights.append([p.detach().clone() for p in steps.model.parameters()])
        except UserError as error:
            return {"ok": False, "refused": str(error)}
        finally:
            gpu.set_deterministic(False)
        found["deterministic" if wanted else "plain"] = {"apart": distance(*weights), "seconds": seconds}
    return {"ok": found["deterministic"]["apart"] == 0, **found}


# By name: the family, its dropout, the check. Most telling first.
CHECKS: Mapping[str, tuple[str, float, Callable[[Task, Clips], dict[str, Any]]]] = {
    "allocator": ("wav2vec2-base", 0.0, allocator),
    "precision_auto": ("wav2vec2-base", 0.0, precision_auto),
    "attention_dropout": ("wav2vec2-base", 0.0, attention_dropout),
    "kernels": ("wav2vec2-base", 0.1, kernels),
    "kernels_wavlm": ("wavlm-large", 0.1, kernels),
    "filter_gradients": ("wav2vec2-base", 0.0, filter_gradients),
    "ddp": ("wav2vec2-base", 0.0, ddp),
    "zero": ("wav2vec2-large", 0.0, zero),
    "fourier_plans": ("wav2vec2-large", 0.0, fourier_plans),
    "fourier_plans_whisper": ("whisper-large-v3", 0.0, fourier_plans),
    "out_of_memory": ("wav2vec2-large", 0.0, out_of_memory),
    "reproducible": ("wav2vec2-base", 0.1, reproducible),
    "reproducible_wavlm": ("wavlm-large", 0.1, reproducible),
    "reproducible_whisper": ("whisper-large-v3", 0.1, reproducible),
}
ON_CPU = {name for name in CHECKS if not name.startswith(("allocator", "fourier_plans", "out_of_memory", "zero"))}


if __name__ == "__main__":
    cli.run_main(main)
