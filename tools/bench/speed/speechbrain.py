"""Peers D and E: SpeechBrain's Brain around its own wrapper of transformers' encoders, set up as its IEMOCAP recipe is
(recipes/IEMOCAP/emotion_recognition, wav2vec 2.0).

D  the recipe's settings: batches of 4 as they come, fp32, average pooling over real frames, two Adam optimizers, gradients
   clipped to norm 5
E  the same with its DynamicBatchSampler and, on a GPU, bf16

So that all have the same loss, transformers' projector stands before the pooling, which the recipe does not have. Gradients
are accumulated over as many batches as make an update; E's batches are of different sizes, so its updates are so only on
average. Clips come from memory. Its wrapper of Whisper is not measured: the recipe has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import speechbrain
import torch
from safetensors.torch import load_file
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.nnet.pooling import StatisticsPooling
from speed.contenders import LR, Watch
from speed.task import Clips, Task
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.shards import RATE

_BATCH, _BUCKETS = 4, 30


class EmotionBrain(speechbrain.Brain):  # type: ignore[misc]
    """The recipe's, with a watch that starts after `warm_up` batches."""

    warm_up, watch = 0, Watch("cpu", "wall")
    optimizers_dict: dict[str, torch.optim.Optimizer] | None

    def compute_forward(self, batch: Any, stage: Any) -> Tensor:
        batch = batch.to(self.device)
        wavs, lengths = batch.sig
        frames = self.modules.projector(self.modules.wav2vec2(wavs, lengths))
        pooled = self.hparams.avg_pool(frames, lengths).flatten(1)
        logits: Tensor = self.modules.output_mlp(pooled)
        return self.hparams.log_softmax(logits)  # type: ignore[no-any-return]

    def compute_objectives(self, predictions: Tensor, batch: Any, stage: Any) -> Tensor:
        targets, _ = batch.target
        return F.nll_loss(predictions.float(), targets.squeeze(1))

    def init_optimizers(self) -> None:
        if self.optimizers_dict is None:  # each round is a call of `fit`
            head = [*self.modules.projector.parameters(), *self.modules.output_mlp.parameters()]
            self.optimizers_dict = {
                "opt_class": torch.optim.Adam(head, lr=LR),
                "wav2vec2_opt_class": torch.optim.Adam(self.modules.wav2vec2.parameters(), lr=LR),
            }

    def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:
        if self.step == self.warm_up:
            self.watch.start()


class Recipe:
    """`dynamic`: E, else D."""

    def __init__(self, task: Task, clips: Clips, *, dynamic: bool) -> None:
        assert not task.whisper
        self.task, self.clips, self.dynamic, self.most_s = task, clips, dynamic, task.most_s
        mean_s = float(clips.index.metadata.seconds.mean())
        # On a GPU an update is about one batch; elsewhere batches are what they are for ours.
        self.batch_s = task.update * mean_s if task.device == "cuda" else min(task.update * mean_s, 40.0)
        self.factor = round(task.update * mean_s / self.batch_s) if dynamic else max(1, task.update // _BATCH)
        half = dynamic and task.precision == "bf16"
        self.workers = 2 if task.device == "cuda" else 0  # the recipe's 2; on a CPU they would take the cores that train
        saved, config = load_file(task.weights / "model.safetensors"), task.config
        projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        classifier = nn.Linear(config.classifier_proj_size, len(clips.classes))
        for name, layer in (("projector", projector), ("classifier", classifier)):
            layer.load_state_dict({part: saved[f"{name}.{part}"] for part in ("weight", "bias")})
        encoder = Wav2Vec2(str(task.weights), str(task.weights), freeze_feature_extractor=task.frozen_stem)
        self.brain = EmotionBrain(
            modules={"wav2vec2": encoder, "projector": projector, "output_mlp": classifier},
            hparams={"avg_pool": StatisticsPooling(return_std=False), "log_softmax": nn.LogSoftmax(dim=-1)},
            run_opts={
                "device": task.device,
                "precision": "bf16" if half else "fp32",
                "noprogressbar": True,
                "grad_accumulation_factor": self.factor,
            },
        )
        self.brain.watch = Watch(task.device, task.clock)
        cut = f"dynamic batches of {self.batch_s:.0f} s" if dynamic else f"batches of {_BATCH}"
        self.how = f"{cut}, {'bf16' if half else 'fp32'}, {self.workers} workers"

    def loss(self, position: int) -> float:
        loader = self.brain.make_dataloader(self.dataset(np.array([position])), speechbrain.Stage.VALID, batch_size=1)
        self.brain.modules.eval()
        return float(self.brain.evaluate_batch(next(iter(loader)), speechbrain.Stage.VALID))

    def train(self, warm_up: np.ndarray, positions: np.ndarray) -> float:
        count = len(warm_up)
        first = [part.tolist() for part in np.array_split(np.arange(count), self.factor) if len(part)]
        batches = [*first, *([count + row for row in batch] for batch in self.batches(positions))]
        self.brain.warm_up = len(first)
        options = {"batch_sampler": batches, "num_workers": self.workers}
        both = self.dataset(np.concatenate([warm_up, positions]))
        self.brain.fit(range(1), both, progressbar=False, train_loader_kwargs=options)
        return self.brain.watch.seconds()

    def batches(self, positions: np.ndarray) -> list[list[int]]:
        rows = np.arange(len(positions))
        if not self.dynamic:
            return [rows[i : i + _BATCH].tolist() for i in range(0, len(rows), _BATCH)]
        lengths = (self.clips.index.num_samples[positions] / RATE).tolist()
        dataset = self.dataset(positions)
        return list(DynamicBatchSampler(dataset, self.batch_s, num_buckets=_BUCKETS, lengths_list=lengths))

    def dataset(self, positions: np.ndarray) -> Any:
        rows = {str(row): {"position": position} for row, position in enumerate(positions.tolist())}
        made = DynamicItemDataset(rows)
        made.add_dynamic_item(lambda position: torch.from_numpy(self.clips.floats(position)), "position", "sig")
        made.add_dynamic_item(lambda position: torch.from_numpy(self.clips.targets[[position]]), "position", "target")
        made.set_output_keys(["id", "sig", "target"])
        return made
