"""Make one module of several trials' classifiers: probabilities are calibrated, each by its own temperature, and averaged.

Heads on one and the same frozen encoder share it: it runs once, whatever their number. Numbers (arousal ...) are averaged as
they are. Of a single trial the outputs are its own logits, divided by its temperature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ser_hpc.models.classifier import Classifier, frames_of_layers
from ser_hpc.models.frontend import Frontend
from ser_hpc.models.heads.linear_probe import LinearProbe, pool_states
from ser_hpc.models.layer_sum import LayerSum
from ser_hpc.tasks.targets import OverClasses, Target


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one trial, by task, the main one first; `encoder`: the number of the encoder under them; `layer_sum`: its
    learned sum of that encoder's layers, if the heads see one."""

    encoder: int
    modules: dict[str, nn.Module]
    layer_sum: LayerSum | None = None

    @classmethod
    def of(cls, classifier: Classifier, encoder: int, main: str) -> Heads:
        """Take those of a classifier."""
        others = {name.removesuffix("_"): head for name, head in classifier.task_heads.items()}
        return cls(encoder, {main: classifier.head, **others}, classifier.layer_sum)


class Ensemble(nn.Module):
    """Clips in, each task's outputs out, as of one classifier. Its weights are named `encoders.0...`, `heads.0.emotion_...` and
    `layer_sums.0.weights`.

    `temperatures`: of each trial, by task; none of a task: 1.
    """

    def __init__(
        self,
        encoders: Sequence[tuple[Frontend, nn.Module]],
        heads: Sequence[Heads],
        targets: Mapping[str, Target],
        temperatures: Sequence[Mapping[str, float]],
    ) -> None:
        super().__init__()
        self.fronts = [front for front, _ in encoders]
        self.encoders = nn.ModuleList(encoder for _, encoder in encoders)
        # With a mark: a module may not be named as what every module has, which a task may be (`type`, `values`).
        self.heads = nn.ModuleList(nn.ModuleDict({f"{task}_": head for task, head in of.modules.items()}) for of in heads)
        self.layer_sums = nn.ModuleList(of.layer_sum or nn.Identity() for of in heads)
        self.owners = [of.encoder for of in heads]
        self.targets, self.temperatures = dict(targets), [dict(of) for of in temperatures]
        self.requires_grad_(False).eval()

    def forward(self, samples: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Predict `samples` (total,): all clips one after another, int16 or float32 in [-1, 1]; `offsets` (B + 1,): int64, on
        the CPU.

        Returns by task (B, width) float32: logits whose softmax is the calibrated, averaged probabilities; or numbers.
        """
        return self.with_distance(samples, offsets)[0]

    def with_distance(self, samples: Tensor, offsets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Predict, and tell how far each clip is from those that a probe was fitted to, (B,): of its features the largest
        distance from their mean there, in standard deviations; 0 of other heads, which know no such thing."""
        distance = torch.zeros(len(offsets) - 1)
        outputs: list[dict[str, Tensor]] = [{} for _ in self.owners]
        for number, (front, encoder) in enumerate(zip(self.fronts, self.encoders, strict=True)):
            own = [k for k, owner in enumerate(self.owners) if owner == number]
            main, probe = next(iter(self.targets)), next(iter(self._heads(own[0]).values()))
            if isinstance(probe, LinearProbe):
                states, lengths = frames_of_layers(front, encoder, samples, offsets, probe.layers)
                pooled = probe.normalize(pool_states(states, lengths, probe.std))
                for k in own:
                    head: Any = self._heads(k)[f"{main}_"]
                    outputs[k] = {main: head.classify(pooled)}
                    largest = ((pooled - head.mean) / head.scale).abs().amax(1)
                    distance = torch.maximum(distance, largest.float().cpu())
                continue
            frames, lengths = self._frames(number, own, samples, offsets)
            for k in own:
                outputs[k] = {task.removesuffix("_"): head(frames[k], lengths) for task, head in self._heads(k).items()}
        combined = {
            task: self.combined(task, target, [each[task] for each in outputs]) for task, target in self.targets.items()
        }
        return combined, distance

    def _frames(self, number: int, own: Sequence[int], samples: Tensor, offsets: Tensor) -> tuple[Mapping[int, Tensor], Tensor]:
        """Run an encoder; return what the heads of each of its members see, and the number of each clip's frames."""
        front, encoder, first = self.fronts[number], self.encoders[number], self.layer_sums[own[0]]
        if not isinstance(first, LayerSum):
            frames, lengths = front(encoder, samples, offsets)
            return dict.fromkeys(own, frames), lengths
        states, lengths = frames_of_layers(front, encoder, samples, offsets, first.layers)
        states = states if len(own) == 1 else list(states)
        return {k: self.layer_sums[k](states) for k in own}, lengths

    def _heads(self, member: int) -> dict[str, nn.Module]:
        return dict(self.heads[member].named_children())

    def combined(self, task: str, target: Target, outputs: list[Tensor]) -> Tensor:
        """Calibrate and average the members' outputs of a task, (B, width) each."""
        temperatures = [of.get(task, 1.0) for of in self.temperatures]
        if not isinstance(target, OverClasses):
            return torch.stack(outputs).mean(0)
        logits = [each if t == 1.0 else each / t for each, t in zip(outputs, temperatures, strict=True)]
        if len(logits) == 1:
            return logits[0]
        return torch.stack([each.log_softmax(-1) for each in logits]).logsumexp(0) - math.log(len(logits))
