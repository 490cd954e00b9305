"""The padded contender of accuracy.py: transformers' own Wav2Vec2 on padded clips, in the way that is commonly used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, Wav2Vec2FeatureExtractor

from ser_hpc.config.settings import Model
from ser_hpc.models.classifier import Classifier, build_classifier
from ser_hpc.shards import RATE
from ser_hpc.tasks.task import Task


class Padded:
    """The front of transformers' own Wav2Vec2, in the way that it is commonly used."""

    max_seconds: float | None = None
    padded = True
    group: int | None = None  # clips do not normalise each other

    def __init__(self, masked: bool) -> None:
        self.masked = masked
        make: Any = Wav2Vec2FeatureExtractor
        self.extractor = make(return_attention_mask=masked)

    def costs(self, samples: np.ndarray) -> np.ndarray:
        """The longest clip's, whatever the clip: clips are not brought in order of length before they are padded."""
        return np.full_like(samples, samples.max())

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """What the head is to pool: all frames of the padded clips, or (`masked`) the clips' own."""
        model: Any = encoder
        lengths = offsets.diff()
        waves = [wave.numpy() for wave in torch.split(samples.float() / 32768, lengths.tolist())]
        given = self.extractor(waves, padding=True, sampling_rate=RATE, return_tensors="pt")
        states: Tensor = model(**given).last_hidden_state  # (B, T, width)
        clips, frames = states.shape[:2]
        if not self.masked:
            return states.flatten(0, 1), torch.full((clips,), frames)
        counts: Tensor = model._get_feat_extract_output_lengths(lengths)
        return states[torch.arange(frames) < counts[:, None]], counts


def build_padded(settings: Model, num_classes: int, seed: int) -> Classifier:
    """The packed classifier's weights in an encoder that transformers made, under the same head."""
    ours = build_classifier(settings, num_classes, seed)
    shape: Any = ours.encoder.config
    make: Any = AutoModel
    with torch.random.fork_rng(devices=[]):
        encoder: nn.Module = make.from_config(shape, attn_implementation="sdpa")  # its own, not ours
    encoder.load_state_dict(ours.encoder.state_dict())
    return Classifier(Padded(masked=shape.feat_extract_norm == "layer"), encoder, ours.head)


def build_padded_for_tasks(
    settings: Model, tasks: Sequence[Task], seed: int, pooled_width: int | None = None, initial: None = None
) -> Classifier:
    """In the place of `classifier.build_for_tasks`: for emotion alone."""
    assert len(tasks) == 1 and pooled_width is None, "the encoder is trained: no pooled features stand in its place"
    assert initial is None, "both contenders start from the same weights"
    return build_padded(settings, tasks[0].target.width, seed)
