"""The convolutional position embedding of Wav2Vec2, HuBERT and WavLM, computed with Fourier transforms.

Its kernel is 128 frames long: 3 % of a model's operations, but 15 to 20 % of a training step on a CPU, where grouped
convolutions of that kind are slow. In stretches of 256 frames it is a product for each frequency: 30 times fewer operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.models import fourier, ragged


class FourierConv(nn.Conv1d):
    """nn.Conv1d (grouped, stride 1), in float32 or better. Stretches start every `hop` frames, each `size` long."""

    @property
    def taps(self) -> int:
        return self.kernel_size[0]

    @property
    def size(self) -> int:
        return 1 << (2 * self.taps - 1).bit_length()

    @property
    def hop(self) -> int:
        return self.size - self.taps + 1

    def room(self, frames: int) -> int:
        """Frames from a clip's start to the next one's, so that no stretch sees both: not even in its rounding does a clip then
        depend on its neighbours, of which one may be silence that a layer norm would blow up."""
        return (-(-frames // self.hop) + 1) * self.hop

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, T) -> (1, C', T + 2 * padding - taps + 1)."""
        pad, dtype = int(self.padding[0]), ragged.at_least_float32(x.dtype)
        frames = x.shape[-1] + 2 * pad - self.taps + 1
        stretches = fourier.rows(-(-frames // self.hop), x.device)
        with torch.autocast(x.device.type, enabled=False):
            row = F.pad(x[0].to(dtype), (pad, stretches * self.hop + self.taps - 1 - pad - x.shape[-1]))
            given = torch.fft.rfft(row.unfold(1, self.size, self.hop)).unflatten(0, (self.groups, -1))
            kernels = torch.fft.rfft(self.weight.to(dtype), n=self.size).conj().unflatten(0, (self.groups, -1))
            product = given.permute(3, 0, 2, 1) @ kernels.permute(3, 0, 2, 1)  # (bins, groups, stretches, C' / groups)
            found: Tensor = torch.fft.irfft(product.permute(1, 3, 2, 0), n=self.size)[..., : self.hop]
            found = found.flatten(2).flatten(0, 1)[None, :, :frames]
            return (found if self.bias is None else found + self.bias.to(dtype)[:, None]).to(x.dtype)


def adopt(embedding: Any) -> None:
    """Give the convolution of transformers' position embedding this forward; its parametrisation (weight norm) stays."""
    parametrized = type(embedding.conv)
    embedding.conv.__class__ = type("FourierConv", (FourierConv, parametrized), {})
