"""Wav2Vec2, HuBERT and WavLM on packed clips: transformers' modules and weights, called one by one without padding.

    samples -> slots of one stride each (320 samples in the published models), every clip at the start of its own; normalised
    stem    -> a frame a slot; those that reach over a clip's end are dropped
    layers  -> positional convolution with gaps of zeros between clips, then attention within each clip

A clip's frames are those that it has alone, and so is every gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ser_hpc.models import norm, positions, ragged, stem
from ser_hpc.models.attention import PACKED, GatedAttention
from ser_hpc.models.packed import Packing, gathered, spread
from ser_hpc.models.spec_augment import SpecAugment


class Waveform:
    """The front of these encoders. `normalize`: each clip to zero mean and unit variance, as Wav2Vec2FeatureExtractor.

    A clip shorter than the stem's receptive field (400 samples in the published models) is padded with zeros to it: one frame.
    """

    max_seconds: float | None = None
    padded = False
    group: int | None = None

    def __init__(self, model: Any, config: Any, normalize: bool, masks: SpecAugment) -> None:
        self.normalize, self.masks = normalize, masks
        self.stride = math.prod(config.conv_stride)
        self.least = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.least = (self.least - 1) * stride + kernel
        self.norm_first = bool(config.do_stable_layer_norm)
        norm.adopt(model)
        stem.adopt(model.feature_extractor)
        positions.adopt(model.encoder.pos_conv_embed)
        if config.model_type == "wavlm":
            for layer in model.encoder.layers:
                layer.attention.__class__ = GatedAttention
        else:
            model.set_attn_implementation(PACKED)

    def costs(self, samples: np.ndarray) -> np.ndarray:
        """A clip begins at a stride of its own."""
        rooms: np.ndarray = -(-np.maximum(samples, self.least) // self.stride) * self.stride
        return rooms

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """(T, width) and each clip's number of frames, (B,) on the CPU."""
        model: Any = encoder
        parameter = next(encoder.parameters())
        lengths: list[int] = offsets.diff().tolist()
        padded = [max(length, self.least) for length in lengths]
        slots = Packing(tuple(-(-length // self.stride) for length in padded), parameter.device)
        wave = self.wave(samples, lengths, slots, ragged.at_least_float32(parameter.dtype)).to(parameter.dtype)
        counts = ragged.moved(torch.tensor(padded), parameter.device)
        frames = Packing(tuple((length - self.least) // self.stride + 1 for length in padded), parameter.device)

        x = gathered(model.feature_extractor(wave, slots, counts), frames.lengths, slots.lengths)
        projected = model.feature_projection(x[None])
        hidden = projected[0] if isinstance(projected, tuple) else projected
        if model.training:
            hidden = self.masks(hidden[0], frames.lengths)[None]
        return self.transformer(model.encoder, hidden, frames)[0], torch.tensor(frames.lengths)

    def wave(self, samples: Tensor, lengths: list[int], slots: Packing, dtype: torch.dtype) -> Tensor:
        """(total,) -> (slots, stride) on the slots' device: clips in [-1, 1], or normalised, and zeros after each."""
        moved = ragged.moved(samples, slots.device)
        rooms = [room * self.stride for room in slots.lengths]
        wave = spread(moved, lengths, rooms).view(-1, self.stride)
        wave = wave.to(dtype) if wave.is_floating_point() else wave.to(dtype) / 32768
        if not self.normalize:
            return wave
        counts = ragged.moved(torch.tensor(lengths), slots.device)
        left = slots.repeated(counts) - slots.positions * self.stride
        real = torch.arange(self.stride, device=slots.device) < left[:, None]
        counts = counts.clamp(min=1)  # an unreadable clip may be empty: it stays zeros
        centred = (wave - slots.repeated(slots.sum(wave.sum(1)) / counts)[:, None]) * real
        variance = slots.sum(centred.square().sum(1)) / counts
        normalized: Tensor = centred / slots.repeated((variance + 1e-7).sqrt())[:, None]
        return normalized

    def transformer(self, encoder: Any, hidden: Tensor, frames: Packing) -> Tensor:
        """(1, T, width) -> (1, T, width): what transformers' encoder does to one clip, to each."""
        rooms = [encoder.pos_conv_embed.conv.room(length) for length in frames.lengths]
        placed = encoder.pos_conv_embed(spread(hidden[0], frames.lengths, rooms)[None])
        hidden = hidden + gathered(placed[0], frames.lengths, rooms)
        hidden = encoder.dropout(hidden if self.norm_first else encoder.layer_norm(hidden))
        bias: Tensor | None = None
        for layer in encoder.layers:
            if isinstance(layer.attention, GatedAttention):
                hidden, bias = layer(hidden, position_bias=bias, packing=frames)
            else:
                hidden = layer(hidden, packing=frames)
        last: Tensor = encoder.layer_norm(hidden) if self.norm_first else hidden
        return last
