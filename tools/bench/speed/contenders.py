"""Training as it is measured: this package, and a lower bound without padding; and what any contender can do.

A contender lives in a process of its own (turns.py) and takes its clips by their positions. Its time runs from the end of an
update that warms up to the end of the last one, with all that a user pays for in a loop: features, collating, both passes,
clipping the gradient to norm 1, AdamW.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from speed.task import CLOCKS, Clips, Task
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from ser_hpc.config.settings import Settings
from ser_hpc.data.batches import BatchSource
from ser_hpc.data.sampler import BatchSpec, ClipSelection, step_micro_batches
from ser_hpc.engine import gpu, precision
from ser_hpc.engine.distributed import build
from ser_hpc.engine.distributed.world import World
from ser_hpc.engine.memory import search
from ser_hpc.engine.objective import Objective
from ser_hpc.engine.step import accumulate_gradients
from ser_hpc.engine.step_metrics import DeferredMetrics
from ser_hpc.engine.torch_compile import compile_layers
from ser_hpc.models.classifier import build_classifier
from ser_hpc.models.norms import RunningStatistics
from ser_hpc.run.run_dir import RunDir
from ser_hpc.shards import RATE
from ser_hpc.tasks.task import ClipTargets
from ser_hpc.tasks.task import Task as LearntTask

LR = 1e-6  # nothing is to be learnt from noise; a step costs the same


class Contender(Protocol):
    how: str
    """Its settings, for the table."""
    most_s: float | None
    """What it hears of a longer clip."""

    def loss(self, position: int) -> float:
        """Cross-entropy of one clip, alone, before training: all contenders have the same weights."""

    def train(self, warm_up: np.ndarray, positions: np.ndarray) -> float:
        """Seconds that updates over the clips at `positions` took, after one over `warm_up`."""


class Watch:
    """Seconds of the task's clock, once the device has done what it was asked to do."""

    def __init__(self, device: str, clock: str) -> None:
        self.cuda, self.began = device == "cuda", 0.0
        self.clock = CLOCKS[clock]

    def start(self) -> None:
        self.began = self._now()

    def seconds(self) -> float:
        return self._now() - self.began

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return self.clock()


class Ours:
    """ser_hpc: shards -> BatchSource -> packed micro-batches -> the strategy, as engine/loop.py drives them on one rank."""

    def __init__(self, task: Task, clips: Clips) -> None:
        encoder = {"kind": "encoder", "weights": str(task.weights), "freeze": "feature_encoder" if task.frozen_stem else "none"}
        settings = Settings.model_validate({"model": encoder, "train": {"precision": task.precision, **task.train}})
        self.device, self.clock = torch.device("cuda:0" if task.device == "cuda" else task.device), task.clock
        world = World(0, 1, 0, 1, self.device)
        settings = as_a_trial(settings, world)
        model = build_classifier(settings.model, len(clips.classes), seed=0)
        saved = load_file(task.weights / "model.safetensors")
        model.head.load_state_dict({k: v for k, v in saved.items() if k.startswith(("projector.", "classifier."))})
        self.update, self.clips = task.update, clips
        self.costs = model.frontend.costs(clips.index.num_samples)
        self.cut = BatchSpec(1, search.find_budget(model, settings, self.costs, world).samples)
        if settings.train.compile:
            compile_layers(model.encoder)
        self.ranks = build.build_strategy(model, settings.train, world, None)
        self.statistics = RunningStatistics(self.ranks.module, task.update)
        emotion = LearntTask.of_classes(clips.classes, clips.targets)
        targets = ClipTargets.of_tasks([emotion], np.arange(len(clips)))
        self.source, self.objective = BatchSource(clips.index, targets), Objective([emotion], targets)
        self.world = world
        self.metrics = DeferredMetrics()
        self.most_s = task.most_s
        self.how = f"packed, at most {self.cut.budget_samples / RATE:g} s, {settings.train.precision}"

    def loss(self, position: int) -> float:
        self.ranks.train_mode(False)
        wave = torch.from_numpy(self.clips.waves[position])
        with torch.no_grad():
            outputs = self.ranks.forward(wave.to(self.device), torch.tensor([0, len(wave)]))
        return float(F.cross_entropy(outputs["emotion"].float().cpu(), torch.from_numpy(self.clips.targets[[position]])))

    def train(self, warm_up: np.ndarray, positions: np.ndarray) -> float:
        self.ranks.train_mode(True)
        watch = Watch(self.device.type, self.clock)
        draws = [
            ClipSelection(warm_up),
            *(ClipSelection(positions[i : i + self.update]) for i in range(0, len(positions), self.update)),
        ]
        steps = list(step_micro_batches(draws, self.costs, self.cut, 0))
        batches = self.source.prefetch(chain.from_iterable(steps), training=True)
        for number, (clips, micros) in enumerate(zip(draws, steps, strict=True)):
            made = list(islice(batches, len(micros)))
            losses = accumulate_gradients(self.ranks, self.objective, made, clips, (0, number), self.world, self.statistics)
            if losses is None:
                raise MemoryError("memory ran out: give --train budget_seconds=...")
            self.metrics.add(clips, LR, losses, self.ranks.step(LR))
            for entry in self.metrics.read():
                assert bool(entry.per_clip_loss.isfinite().all()), "the loop looks at every loss, a step late"
            if not number:
                watch.start()
        return watch.seconds()


def as_a_trial(settings: Settings, world: World) -> Settings:
    """What a trial sets in torch before it begins, and the settings with a precision by name."""
    if world.device.type == "cuda":
        gpu.set_up_gpu(world.device)
    gpu.set_deterministic(settings.train.deterministic)
    with tempfile.TemporaryDirectory() as folder:
        return precision.choose_precision(settings, RunDir(Path(folder)), world)


class Alone:
    """transformers' classifier without a padded sample: each clip by itself, those of one length together. No way of training
    with it does less arithmetic; how many clips an update has is all the same to it. Whisper's encoder is cut to each length.
    """

    def __init__(self, task: Task, clips: Clips) -> None:
        model_class: Any = AutoModelForAudioClassification
        extractor_class: Any = AutoFeatureExtractor
        self.model = model_class.from_pretrained(task.weights).to(task.device)
        self.extractor = extractor_class.from_pretrained(task.weights)
        freeze_stem(self.model, task)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.01, fused=True)
        self.task, self.clips = task, clips
        self.most_s = task.most_s
        self.how = f"no padding, {task.precision}"

    def loss(self, position: int) -> float:
        self.model.eval()
        with torch.no_grad():
            return float(self.losses([position]))

    def train(self, warm_up: np.ndarray, positions: np.ndarray) -> float:
        self.model.train()
        watch = Watch(self.task.device, self.task.clock)
        self.step(warm_up)
        watch.start()
        for i in range(0, len(positions), self.task.update):
            self.step(positions[i : i + self.task.update])
        return watch.seconds()

    def step(self, positions: np.ndarray) -> None:
        for batch in self.batches(positions):
            (self.losses(batch) / len(positions)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def batches(self, positions: np.ndarray) -> Iterator[list[int]]:
        by_length: dict[int, list[int]] = {}
        for position in positions.tolist():
            by_length.setdefault(len(self.clips.waves[position]), []).append(position)
        yield from by_length.values()

    def losses(self, positions: list[int]) -> Tensor:
        """Summed over clips of one length."""
        features = self.features([self.clips.floats(position) for position in positions])
        targets = torch.from_numpy(self.clips.targets[positions]).to(self.task.device)
        half = self.task.precision == "bf16"
        with torch.autocast(self.task.device, torch.bfloat16) if half else nullcontext():
            logits = self.model(features).logits
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def features(self, waves: list[np.ndarray]) -> Tensor:
        if not self.task.whisper:
            made = self.extractor(waves, sampling_rate=RATE, return_tensors="pt").input_values
        else:  # as of 30 s, of which two more windows than the real ones are not silent
            frames = -(-len(waves[0]) // 320)
            padded = [np.pad(wave, (0, 320 * (frames + 2) - len(wave))) for wave in waves]
            made = self.extractor(padded, sampling_rate=RATE, padding=False, return_tensors="pt").input_features
            made = made[:, :, : 2 * frames]
            encoder = self.model.encoder
            encoder.config.max_source_positions = encoder.embed_positions.num_embeddings = frames
        moved: Tensor = made.to(self.task.device)
        return moved


def freeze_stem(model: Any, task: Task) -> None:
    """Of a classifier of transformers."""
    if task.frozen_stem and task.whisper:
        for part in (model.encoder.conv1, model.encoder.conv2):
            part.requires_grad_(False)
    elif task.frozen_stem:
        model.freeze_feature_encoder()
