"""Peers A, B and C: transformers' Trainer around its own classifier of the family.

A  as its audio-classification example sets it up: batches of 8, fp32, features made on the fly by the training process, 20 s of
   longer clips, taken at random
B  the same with batches of 32, bf16 and 8 workers (GPU only)
C  tuned: grouped by length, whole clips, bf16 on a GPU, 12 workers there (none on a CPU: they would take the cores that train),
   fused AdamW, TF32 for what bf16 leaves, no search for unused parameters, no check for NaN at each step, and the best batch
   size of those tried
C-compiled  the same under torch.compile, with lengths that vary and one batch size, 32: compiling takes minutes

Clips come from memory, as int16: nothing is opened or decoded. Padding is their extractor's: batches to their longest clip,
Whisper's to 30 s. Each round is one call of `Trainer.train`; starting its workers falls into the update that warms up.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from speed.contenders import LR, Watch, freeze_stem
from speed.task import Clips, Task
from torch.utils.data import Dataset, Sampler
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from ser_hpc.shards import RATE

_TRIED = (4, 8, 16, 32, 64)
_UPDATES_TRIED = 4


class Features(Dataset[dict[str, Any]]):
    """What the example's dataset transform makes of a clip."""

    def __init__(self, clips: Clips, extractor: Any, most_s: float | None) -> None:
        self.clips, self.extractor, self.most = clips, extractor, None if most_s is None else round(most_s * RATE)
        self.name = extractor.model_input_names[0]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> dict[str, Any]:
        wave = self.clips.floats(position)
        if self.most and len(wave) > self.most:
            start = np.random.randint(len(wave) - self.most)
            wave = wave[start : start + self.most]
        made = self.extractor(wave, sampling_rate=RATE)
        return {self.name: made[self.name][0], "labels": int(self.clips.targets[position])}


class InOrder(Sampler[int]):
    def __init__(self, positions: list[int]) -> None:
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)


class OrderedTrainer(Trainer):
    """Takes the clips in a given order. (Its own would draw from all clips, and makes all features to learn their lengths.)"""

    order: list[int]

    def _get_train_sampler(self, train_dataset: Any = None) -> InOrder:
        return InOrder(self.order)


class Timer(TrainerCallback):
    def __init__(self, watch: Watch) -> None:
        self.watch, self.seconds = watch, float("nan")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.watch.start()
        if state.global_step == state.max_steps:
            self.seconds = self.watch.seconds()


class OfTrainer:
    """One batch size; `grouped` by length; `most_s`: longer clips are cut; `arguments`: TrainingArguments."""

    def __init__(self, task: Task, clips: Clips, batch: int, *, grouped: bool, most_s: float | None, **arguments: Any) -> None:
        self.task, self.clips, self.grouped, self.arguments = task, clips, grouped, arguments
        self.most_s = most_s or task.most_s
        model_class: Any = AutoModelForAudioClassification
        extractor_class: Any = AutoFeatureExtractor
        self.model = model_class.from_pretrained(task.weights).to(task.device)
        freeze_stem(self.model, task)
        self.extractor = extractor_class.from_pretrained(task.weights)
        self.folder = tempfile.TemporaryDirectory()
        self.use(batch)

    def use(self, batch: int) -> None:
        """From now on batches of so many clips, as many of them to an update as give it its clips."""
        batch = min(batch, self.task.update)
        self.timer = Timer(Watch(self.task.device, self.task.clock))
        arguments = TrainingArguments(
            output_dir=self.folder.name,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=self.task.update // batch,
            num_train_epochs=1,
            learning_rate=LR,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=self.task.device == "cpu",
            **self.arguments,
        )
        self.trainer = OrderedTrainer(
            self.model,
            arguments,
            train_dataset=Features(self.clips, self.extractor, self.most_s),
            processing_class=self.extractor,
            callbacks=[self.timer],
        )
        self.trainer.remove_callback(PrinterCallback)
        half, workers = arguments.bf16, arguments.dataloader_num_workers
        self.how = f"batches of {batch}, {'bf16' if half else 'fp32'}, {workers} workers" + ", by length" * self.grouped
        self.how += ", compiled" * arguments.torch_compile

    def loss(self, position: int) -> float:
        self.model.eval()
        batch = self.trainer.data_collator([Features(self.clips, self.extractor, None)[position]])
        with torch.no_grad(), self.trainer.autocast_smart_context_manager():
            return float(self.model(**{name: value.to(self.task.device) for name, value in batch.items()}).loss)

    def train(self, warm_up: np.ndarray, positions: np.ndarray) -> float:
        return self.train_in_order(warm_up, self.by_length(positions) if self.grouped else positions)

    def train_in_order(self, warm_up: np.ndarray, positions: np.ndarray) -> float:
        self.trainer.order = [*warm_up.tolist(), *positions.tolist()]
        self.trainer.train()
        return self.timer.seconds

    def by_length(self, positions: np.ndarray) -> np.ndarray:
        """As Trainer's train_sampling_strategy="group_by_length" would order them."""
        lengths = self.clips.index.num_samples[positions].tolist()
        generator = torch.Generator().manual_seed(int(positions[0]))
        return positions[list(LengthGroupedSampler(self.task.update, lengths=lengths, generator=generator))]


class Tuned(OfTrainer):
    """Before its first round it tries the batch sizes on a few updates, of short and long clips."""

    tuned = False

    def train(self, warm_up: np.ndarray, positions: np.ndarray) -> float:
        if not self.tuned:
            ordered = self.by_length(self.clips.drawn(0, self.task.update)[1]).reshape(-1, self.task.update)
            some = ordered[:: max(1, len(ordered) // _UPDATES_TRIED)][:_UPDATES_TRIED].ravel()
            seconds = {batch: self.tried(batch, warm_up, some) for batch in self.sizes()}
            self.use(min(seconds, key=lambda batch: seconds[batch]))
            self.tuned = True
        return super().train(warm_up, positions)

    def sizes(self) -> list[int]:
        least = 16 if self.task.device == "cuda" else 4
        return [batch for batch in _TRIED if batch >= least and self.task.update % batch == 0]

    def tried(self, batch: int, warm_up: np.ndarray, positions: np.ndarray) -> float:
        self.use(batch)
        try:
            return self.train_in_order(warm_up, positions)
        except torch.OutOfMemoryError:
            return float("inf")


def example(task: Task, clips: Clips) -> OfTrainer:
    return OfTrainer(task, clips, 8, grouped=False, most_s=20.0)


def example_on_gpu(task: Task, clips: Clips) -> OfTrainer:
    return OfTrainer(task, clips, 32, grouped=False, most_s=20.0, bf16=True, dataloader_num_workers=8)


def tuned(task: Task, clips: Clips) -> OfTrainer:
    return Tuned(task, clips, min(8, task.update), grouped=True, most_s=None, **_best(task))


def compiled(task: Task, clips: Clips) -> OfTrainer:
    torch._dynamo.config.automatic_dynamic_shapes = True
    return OfTrainer(task, clips, min(32, task.update), grouped=True, most_s=None, torch_compile=True, **_best(task))


def _best(task: Task) -> dict[str, Any]:
    cuda = task.device == "cuda"
    return {
        "bf16": task.precision == "bf16",
        "tf32": True if cuda else None,
        "optim": "adamw_torch_fused",
        "dataloader_num_workers": min(12, len(os.sched_getaffinity(0))) if cuda else 0,
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,
    }


SETTINGS = {"A": example, "B": example_on_gpu, "C": tuned, "C-compiled": compiled}
