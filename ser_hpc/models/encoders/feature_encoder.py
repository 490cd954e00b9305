"""Run the convolutional stem of Wav2Vec2, HuBERT and WavLM on packed clips, as matrix products on frames (T, C).

Every clip starts at a multiple of the stem's stride, where a frame starts too: its frames are those that it has alone. Frames
that reach over a clip's end come out as well, and are dropped at last. In this layout a convolution whose stride is s is one
product of the rows of s frames, and one more for every further s taps: no copies of windows, no transposes for the layer norm.

The first layer's group norm takes its statistics over each clip's own frames. They follow from the waveform alone: a filter's
mean and variance over a clip are those of the clip's windows, (taps,) and (taps, taps), seen through the filter. So they cost
next to nothing, and the normalised filters are applied at once, without ever storing what they normalise.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.models.packed import Packing


class FeatureEncoder(nn.Module):
    """The modules of transformers' feature encoder, with another forward. Make it with `patch_feature_encoder`."""

    conv_layers: nn.ModuleList
    gradient_checkpointing: bool
    _gradient_checkpointing_func: Any

    def forward(self, wave: Tensor, slots: Packing, samples: Tensor) -> Tensor:
        """Encode `wave` (slots, stride), each clip at the start of its slots, then zeros; `samples` (B,) of each clip, on the
        device, at least the receptive field. -> (slots, C); frames that do not lie wholly inside a clip are without meaning.
        """
        x = wave.reshape(-1, 1)
        layers: Iterable[Any] = self.conv_layers
        for layer in layers:
            run = partial(_layer, layer, wave, slots, samples)
            again = self.gradient_checkpointing and self.training  # transformers' own switch, see checkpointing.py
            x = self._gradient_checkpointing_func(run, x) if again else run(x)
        return x


def _layer(layer: Any, wave: Tensor, slots: Packing, samples: Tensor, x: Tensor) -> Tensor:
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, ClipNorm):
        x = _normalized_filters(layer.conv, norm, wave, slots, samples)
    else:
        x = layer.conv(x)
        x = x if norm is None else norm(x)
    activated: Tensor = layer.activation(x)
    return activated


class FrameConv(nn.Conv1d):
    """nn.Conv1d on (T, C) with T a multiple of the stride: (T // stride, C'), as if zeros followed."""

    def forward(self, x: Tensor) -> Tensor:
        taps, stride = self.kernel_size[0], self.stride[0]
        weight, bias = self.weight, self.bias
        if self.in_channels == 1:  # windows of a waveform are small: one product of all taps at once
            windows = F.pad(x[:, 0], (0, max(0, taps - stride))).unfold(0, taps, stride)
            rows: Tensor = F.linear(windows[: len(x) // stride], weight[:, 0], bias)
        else:
            device = x.device.type
            if torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
                x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            with torch.autocast(device, enabled=False):
                rows = _StridedProduct.apply(x, weight, bias, stride)  # type: ignore[no-untyped-call]
        return rows


class _StridedProduct(torch.autograd.Function):
    """A convolution's products, taps in blocks of `stride`: row t is the sum over blocks b of rows[t + b] @ weight[b].

    `weight` (C', C, taps), as is its gradient: one laid out otherwise would cost DDP a copy, and a warning.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        rows = x.reshape(len(x) // stride, -1)
        first, *others = _StridedProduct.blocks(weight, stride)
        out: Tensor = rows @ first if bias is None else torch.addmm(bias, rows, first)
        for shift, block in enumerate(others, start=1):
            out[:-shift].addmm_(rows[shift:, : len(block)], block)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = x.reshape(len(x) // ctx.stride, -1)
        first, *others = _StridedProduct.blocks(weight, ctx.stride)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_rows = grad @ first.T
            for shift, block in enumerate(others, start=1):
                grad_rows[shift:, : len(block)].addmm_(grad[:-shift], block.T)
            grad_x = grad_rows.view(x.shape)
        if ctx.needs_input_grad[1]:
            later = [rows[shift:, : len(block)].T @ grad[:-shift] for shift, block in enumerate(others, start=1)]
            joined = torch.cat([rows.T @ grad, *later]).view(*weight.shape[::-1])
            grad_weight = joined.permute(2, 1, 0).contiguous()
        return grad_x, grad_weight, grad.sum(0) if ctx.needs_input_grad[2] else None, None

    @staticmethod
    def blocks(weight: Tensor, stride: int) -> tuple[Tensor, ...]:
        """Cut into blocks, (up to stride * C, C') each."""
        return torch.split(weight.permute(2, 1, 0).flatten(0, 1), stride * weight.shape[1])


class Filters(nn.Conv1d):
    """The first layer's filters, to be normalised clip by clip. Calling it gives its parameters, so that whoever gathers
    parameters for a call (ZeRO-3) knows of their use: (C, taps) and (C,), in double precision."""

    def forward(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        weight = self.weight[:, 0].double()
        return weight, weight.new_zeros(len(weight)) if self.bias is None else self.bias.double()


class ClipNorm(nn.GroupNorm):
    """Group normalisation of each channel (a group of its own) over a clip, as the scale and the shift that it amounts to."""

    def forward(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Compute scale and shift, (B, C) each -> (B, C) each."""
        scale = self.weight * (variance + self.eps).rsqrt()
        return scale, self.bias - mean * scale


def _normalized_filters(conv: Filters, norm: ClipNorm, wave: Tensor, slots: Packing, samples: Tensor) -> Tensor:
    """Compute the first layer's normalised frames, (slots * frames per slot, C)."""
    taps, stride, device = conv.kernel_size[0], conv.stride[0], wave.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wave.dtype
    per_slot = wave.shape[1] // stride
    windows = F.pad(wave.flatten(), (0, max(0, taps - stride))).unfold(0, taps, stride)[: slots.total * per_slot]
    windows = windows.view(slots.total, per_slot, taps).contiguous()  # as the products want them
    with torch.autocast(device, enabled=False):
        mean, covariance = _window_statistics(windows, slots, (samples - taps) // stride + 1)
        weight, bias = conv()
        average, variance = mean @ weight.T + bias, ((weight @ covariance) * weight).sum(-1)
        scale, shift = norm(average, variance)
        filters, shift = (weight.T * scale[:, None]).to(dtype), (bias * scale + shift).to(dtype)
        rows = torch.baddbmm(slots.repeated(shift)[:, None], windows.to(dtype), slots.repeated(filters))
    return rows.flatten(0, 1)


@torch.no_grad()
def _window_statistics(windows: Tensor, slots: Packing, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean (B, taps) and covariance (B, taps, taps) of the `frames` (B,) windows of each clip, in double precision: a
    filter may see only a ten-thousandth of a clip's variance."""
    per_slot = windows.shape[1]
    left = slots.repeated(frames) - slots.positions * per_slot
    own = (torch.arange(per_slot, device=windows.device) < left[:, None])[..., None]
    count = frames.double()
    mean = slots.sum((windows.double() * own).sum(1)) / count[:, None]
    centred = (windows.double() - slots.repeated(mean)[:, None]) * own
    return mean, slots.sum(centred.mT @ centred) / count[:, None, None]


def patch_feature_encoder(extractor: Any) -> None:
    """Give transformers' feature encoder and its convolutions the forward of this module; parameters and names stay."""
    extractor.__class__ = FeatureEncoder
    for layer in extractor.conv_layers:
        norm = getattr(layer, "layer_norm", None)
        grouped = isinstance(norm, nn.GroupNorm)
        layer.conv.__class__ = Filters if grouped else FrameConv
        if grouped:
            norm.__class__ = ClipNorm
