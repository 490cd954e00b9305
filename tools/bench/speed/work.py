"""How much arithmetic training on a clip is, counted from the encoder's definition; what share of the machine that makes.

One multiply-add counts 2. Of one clip of n samples, T frames, in an encoder of L layers of width d and inner width f:

    stem                  each convolution: 2 · n' · C_out · C_in · k, with n' = floor((n - k) / s) + 1 of its own input
    linear layers         L · T · (8 d² + 4 d f); with the usual f = 4 d that is 24 · L · T · d²
    attention             4 · L · T² · d
    positional convolution  2 · T · d · (d / groups) · k

Normalisations, activations, the head and reading are left out: together they are below a hundredth. Operation counters
(torch.utils.flop_counter) overcount the grouped positional convolution's weight gradient by its number of groups; hence the
formula. Training takes about three times the forward pass (the gradient of each product's two factors is a product of the same
size: Kaplan et al. 2020, section 2.1); a frozen stem is run forward alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

_FRAME = 320  # samples of a Whisper frame


class Work(NamedTuple):
    """Floating-point operations."""

    stem: float
    rest: float


def forward(config: Any, samples: int) -> Work:
    """Of one clip's real samples, without padding. `config`: transformers' configuration of the encoder."""
    return _whisper(config, -(-samples // _FRAME)) if config.model_type == "whisper" else _waveform(config, samples)


def training(config: Any, samples: Iterable[int], *, frozen_stem: bool) -> float:
    """Floating-point operations of one forward and backward pass over clips of so many samples."""
    works = [forward(config, count) for count in samples]
    return sum((1 if frozen_stem else 3) * work.stem + 3 * work.rest for work in works)


def _waveform(config: Any, samples: int) -> Work:
    stem, frames, channels = 0.0, samples, 1
    for kernel, stride, out in zip(config.conv_kernel, config.conv_stride, config.conv_dim, strict=True):
        frames = max(0, frames - kernel) // stride + 1
        stem += 2 * frames * out * channels * kernel
        channels = out
    width = config.hidden_size
    positions = 2 * frames * width * (width / config.num_conv_pos_embedding_groups) * config.num_conv_pos_embeddings
    projection = 2 * frames * channels * width
    return Work(stem, _layers(config.num_hidden_layers, frames, width, config.intermediate_size) + positions + projection)


def _whisper(config: Any, frames: int) -> Work:
    width = config.d_model
    stem = 2 * (2 * frames) * width * config.num_mel_bins * 3 + 2 * frames * width * width * 3
    return Work(stem, _layers(config.encoder_layers, frames, width, config.encoder_ffn_dim))


def _layers(layers: int, frames: int, width: int, inner: int) -> float:
    return layers * (frames * (8 * width**2 + 4 * width * inner) + 4 * frames**2 * width)


def measured_peak(device: torch.device, clock: Callable[[], float] = time.perf_counter, seconds: float = 0.5) -> float:
    """Operations a second that a large matrix product of random numbers reaches here: bf16 on a GPU, fp32 on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, deadline = float("inf"), clock() + seconds
    while clock() < deadline:
        began = clock()
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - began)
    return float(4 * 2 * size**3 / best)
