"""Build a small convolutional network on log-Mel frames, the field's plainest baseline without pre-training: blocks of a 3 x 3
convolution, normalisation, ReLU and 2 x 2 max-pooling, then the mean over bands (Kong et al. 2020).

A convolution sees zeros beyond a clip's end, and max-pooling none of another clip's frames, as if the clip stood alone.
Features are normalised by each clip's own statistics, so nothing of other clips (or other parts of a fold) enters them.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.config.settings import CnnModel
from ser_hpc.models.encoders.acrnn import FLOOR, HOP, RATE, WINDOW
from ser_hpc.models.frontend import Frontend
from ser_hpc.models.norms import FrameBatchNorm
from ser_hpc.models.packed import as_floats, at_least_float32, insert_gaps, remove_gaps, to_device

_FFT = 512
_POOL = 2  # frames, and Mel bands
_GAP = 1  # frame that a convolution reaches beyond a clip's ends


class MelFrontend(Frontend):
    """Log-Mel frames of 25 ms, every 10 ms, of zero mean and unit variance over each clip.

    Frames lie wholly inside the clip; a clip too short for one frame behind all poolings is padded with zeros to just that.
    """

    def __init__(self, settings: CnnModel) -> None:
        self.group = settings.norm_group if settings.norm == "batch" else None
        self.mel = torchaudio.transforms.MelSpectrogram(
            RATE, n_fft=_FFT, win_length=WINDOW, hop_length=HOP, f_min=50.0, n_mels=settings.mels, center=False
        )
        self.least = _FFT + (_POOL ** len(settings.channels) - 1) * HOP

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        parameter = next(encoder.parameters())
        dtype = at_least_float32(parameter.dtype)
        self.mel.to(parameter.device, dtype)
        with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
            scaled = as_floats(to_device(samples, parameter.device), dtype)
            mels = [self._log_mel(clip) for clip in torch.split(scaled, offsets.diff().tolist())]
        lengths = torch.tensor([len(mel) for mel in mels])
        frames: tuple[Tensor, Tensor] = encoder(torch.cat(mels).to(parameter.dtype), lengths)
        return frames

    def _log_mel(self, clip: Tensor) -> Tensor:
        """Compute (samples,) -> (frames, mels), normalised."""
        mel = (self.mel(F.pad(clip, (0, max(0, self.least - len(clip))))) + FLOOR).log().T
        variance, average = torch.var_mean(mel, correction=0)
        normalised: Tensor = (mel - average) / (variance + 1e-5).sqrt()
        return normalised


class Cnn(nn.Module):
    """The blocks, and the mean over bands: a frame is 10 ms x 2^blocks, its width the channels of the last block."""

    def __init__(self, settings: CnnModel) -> None:
        super().__init__()
        widths, batch = [1, *settings.channels], settings.norm == "batch"  # which cancels a bias
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=_GAP, bias=not batch) for before, after in pairwise(widths)
        )
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
        self.norms = nn.ModuleList(FrameBatchNorm(width) if batch else nn.Identity() for width in settings.channels)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (T, mels), all clips one after another, of `lengths` (B,), CPU: frames (T', channels) and their lengths."""
        x, counts = features[:, :, None], lengths.tolist()  # (T, bands, channels)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            rooms, even = [count + _GAP for count in counts], [count // _POOL * _POOL for count in counts]
            x = convolution(insert_gaps(x, counts, rooms).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
            x = F.relu(norm(remove_gaps(x, even, rooms)))  # a last odd frame has none to be pooled with
            x = F.max_pool2d(x.permute(2, 0, 1)[None], _POOL)[0].permute(1, 2, 0)
            counts = [count // _POOL for count in even]
        return x.mean(1), torch.tensor(counts)
