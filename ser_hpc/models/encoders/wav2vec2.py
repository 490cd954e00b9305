"""Run Wav2Vec2, HuBERT and WavLM on packed clips: transformers' modules and weights, called one by one without padding.

    samples -> slots of one stride each (320 samples in the published models), every clip at the start of its own; normalised
    stem    -> a frame a slot; those that reach over a clip's end are dropped
    layers  -> positional convolution with gaps of zeros between clips, then attention within each clip

A clip's frames are those that it has alone, and so is every gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.models.encoders.configuration import least_samples
from ser_hpc.models.encoders.feature_encoder import patch_feature_encoder
from ser_hpc.models.encoders.packed_attention import PACKED, GatedAttention
from ser_hpc.models.encoders.spec_augment import SpecAugment
from ser_hpc.models.norms import patch_layer_norms
from ser_hpc.models.packed import Packing, as_floats, at_least_float32, fft_rows, insert_gaps, last_of, remove_gaps, to_device


class Wav2Vec2Frontend:
    """The front of these encoders. `normalize`: each clip to zero mean and unit variance, as Wav2Vec2FeatureExtractor.

    A clip shorter than the stem's receptive field (400 samples in the published models) is padded with zeros to it: one frame.
    """

    max_seconds: float | None = None
    padded = False
    group: int | None = None

    def __init__(self, model: Any, config: Any, normalize: bool, masks: SpecAugment) -> None:
        self.normalize, self.masks = normalize, masks
        self.stride = math.prod(config.conv_stride)
        self.least = least_samples(config)
        self.norm_first = bool(config.do_stable_layer_norm)
        patch_layer_norms(model)
        patch_feature_encoder(model.feature_extractor)
        _patch_pos_conv(model.encoder.pos_conv_embed)
        if config.model_type == "wavlm":
            for layer in model.encoder.layers:
                layer.attention.__class__ = GatedAttention
        else:
            model.set_attn_implementation(PACKED)

    def costs(self, samples: np.ndarray) -> np.ndarray:
        """Round up to whole strides: a clip begins at one of its own."""
        rooms: np.ndarray = -(-np.maximum(samples, self.least) // self.stride) * self.stride
        return rooms

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames (T, width) and each clip's number of them, (B,) on the CPU."""
        states, lengths = self.hidden_states(encoder, samples, offsets)
        return last_of(states), lengths

    def hidden_states(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Iterator[Tensor], Tensor]:
        """Return the frames of all layers, see `LayeredFrontend`."""
        model: Any = encoder
        parameter = next(encoder.parameters())
        lengths: list[int] = offsets.diff().tolist()
        padded = [max(length, self.least) for length in lengths]
        slots = Packing(tuple(-(-length // self.stride) for length in padded), parameter.device)
        wave = self.wave(samples, lengths, slots, at_least_float32(parameter.dtype)).to(parameter.dtype)
        counts = to_device(torch.tensor(padded), parameter.device)
        frames = Packing(tuple((length - self.least) // self.stride + 1 for length in padded), parameter.device)

        x = remove_gaps(model.feature_extractor(wave, slots, counts), frames.lengths, slots.lengths)
        projected = model.feature_projection(x[None])
        hidden = projected[0] if isinstance(projected, tuple) else projected
        if model.training:
            hidden = self.masks(hidden[0], frames.lengths)[None]
        return self.transformer(model.encoder, hidden, frames), torch.tensor(frames.lengths)

    def wave(self, samples: Tensor, lengths: list[int], slots: Packing, dtype: torch.dtype) -> Tensor:
        """Lay out samples (total,) as (slots, stride) on the slots' device: in [-1, 1], or normalised; then zeros."""
        moved = to_device(samples, slots.device)
        rooms = [room * self.stride for room in slots.lengths]
        wave = insert_gaps(moved, lengths, rooms).view(-1, self.stride)
        wave = as_floats(wave, dtype)
        if not self.normalize:
            return wave
        counts = to_device(torch.tensor(lengths), slots.device)
        left = slots.repeated(counts) - slots.positions * self.stride
        real = torch.arange(self.stride, device=slots.device) < left[:, None]
        counts = counts.clamp(min=1)  # an unreadable clip may be empty: it stays zeros
        centred = (wave - slots.repeated(slots.sum(wave.sum(1)) / counts)[:, None]) * real
        variance = slots.sum(centred.square().sum(1)) / counts
        normalized: Tensor = centred / slots.repeated((variance + 1e-7).sqrt())[:, None]
        return normalized

    def transformer(self, encoder: Any, hidden: Tensor, frames: Packing) -> Iterator[Tensor]:
        """Do to each clip what transformers' encoder does to one; yields (T, width), before the first layer and after each."""
        rooms = encoder.pos_conv_embed.conv.rooms(frames.lengths)
        placed = encoder.pos_conv_embed(insert_gaps(hidden[0], frames.lengths, rooms)[None])
        hidden = hidden + remove_gaps(placed[0], frames.lengths, rooms)
        hidden = encoder.dropout(hidden if self.norm_first else encoder.layer_norm(hidden))
        bias: Tensor | None = None
        for layer in encoder.layers:
            yield hidden[0]
            if isinstance(layer.attention, GatedAttention):
                hidden, bias = layer(hidden, position_bias=bias, packing=frames)
            else:
                hidden = layer(hidden, packing=frames)
        yield (encoder.layer_norm(hidden) if self.norm_first else hidden)[0]


class FourierConv(nn.Conv1d):
    """nn.Conv1d (grouped, stride 1), in float32 or better, by Fourier transforms: the convolutional position embedding.

    Its kernel is 128 frames long: 3 % of a model's operations, but 15 to 20 % of a training step on a CPU, where grouped
    convolutions of that kind are slow. In stretches of 256 frames it is a product for each frequency: a thirtieth of the work.
    """

    def stretch(self) -> tuple[int, int]:
        """Return how far apart stretches start, and how long each is, in frames."""
        size = 1 << (2 * self.kernel_size[0] - 1).bit_length()
        return size - self.kernel_size[0] + 1, size

    def rooms(self, lengths: Sequence[int]) -> list[int]:
        """Return frames from each clip's start to the next one's, so that no stretch sees both: not even in its rounding does a
        clip then depend on its neighbours, of which one may be silence that a layer norm would blow up."""
        hop, _ = self.stretch()
        return [(-(-length // hop) + 1) * hop for length in lengths]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (1, C, T) -> (1, C', T + 2 * padding - taps + 1)."""
        (hop, size), taps, pad, dtype = self.stretch(), self.kernel_size[0], int(self.padding[0]), at_least_float32(x.dtype)
        frames = x.shape[-1] + 2 * pad - taps + 1
        stretches = fft_rows(-(-frames // hop), x.device)
        with torch.autocast(x.device.type, enabled=False):
            row = F.pad(x[0].to(dtype), (pad, stretches * hop + taps - 1 - pad - x.shape[-1]))
            given = torch.fft.rfft(row.unfold(1, size, hop)).unflatten(0, (self.groups, -1))
            kernels = torch.fft.rfft(self.weight.to(dtype), n=size).conj().unflatten(0, (self.groups, -1))
            product = given.permute(3, 0, 2, 1) @ kernels.permute(3, 0, 2, 1)  # (bins, groups, stretches, C' / groups)
            found: Tensor = torch.fft.irfft(product.permute(1, 3, 2, 0), n=size)[..., :hop]
            found = found.flatten(2).flatten(0, 1)[None, :, :frames]
            return (found if self.bias is None else found + self.bias.to(dtype)[:, None]).to(x.dtype)


def _patch_pos_conv(embedding: Any) -> None:
    """Give the convolution of transformers' position embedding this forward; its parametrisation (weight norm) stays."""
    parametrized = type(embedding.conv)
    embedding.conv.__class__ = type("FourierConv", (FourierConv, parametrized), {})
