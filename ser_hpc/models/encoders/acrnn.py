"""Build the 3-D convolutional recurrent network with attention (Chen et al. 2018, doi 10.1109/LSP.2018.2860246), the field's
baseline without pre-training: log-Mel spectrogram with deltas -> convolutions -> linear -> BLSTM -> (heads/attention_pool).

Every layer sees zeros beyond a clip's end, as it would if the clip stood alone; what looks at single frames sees those of all
clips one after another, and only the recurrent layers pad. Features are normalised by each clip's own statistics, so nothing of
other clips (or other parts of a fold) enters them.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from ser_hpc.config.settings import AcrnnModel
from ser_hpc.models.norms import FrameBatchNorm
from ser_hpc.models.packed import as_floats, at_least_float32, insert_gaps, remove_gaps, to_device

RATE = 16_000
WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
POOL = (2, 4)  # frames, Mel bands
KERNEL = (5, 3)  # frames, Mel bands
_FILTER_KNOTS = 4
SLOPE = 0.01  # of the leaky rectifier
FLOOR = 1e-7  # of a band's power: about the noise of 16-bit quantisation, so that digital silence is no outlier


class MelFrontend:
    """Log-Mel spectrogram, its deltas and their deltas as three channels; SpecAugment masks in training.

    Frames lie wholly inside the clip (no centring); a clip too short for `POOL[0]` of them is padded with zeros to just that.
    """

    max_seconds: float | None = None
    padded = True

    def __init__(self, settings: AcrnnModel) -> None:
        self.settings = settings
        self.group = settings.norm_group if settings.norm == "batch" else None
        self.mel = torchaudio.transforms.MelSpectrogram(
            RATE, n_fft=512, win_length=WINDOW, hop_length=HOP, f_min=50.0, n_mels=settings.mels, center=False
        )
        self.least = 512 + (POOL[0] - 1) * HOP

    def costs(self, samples: np.ndarray) -> np.ndarray:
        return samples

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        parameter = next(encoder.parameters())
        dtype = at_least_float32(parameter.dtype)
        self.mel.to(parameter.device, dtype)
        with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
            scaled = as_floats(to_device(samples, parameter.device), dtype)
            mels = [self.log_mel(clip) for clip in torch.split(scaled, offsets.diff().tolist())]
            if encoder.training:
                features = [self.masked(with_deltas(self.warped(self.filtered(mel)))) for mel in mels]
            else:
                features = [with_deltas(mel) for mel in mels]
        lengths = torch.tensor([len(feature) for feature in features])
        frames: tuple[Tensor, Tensor] = encoder(torch.cat(features).to(parameter.dtype), lengths)
        return frames

    def log_mel(self, clip: Tensor) -> Tensor:
        """Compute (samples,) -> (mels, frames)."""
        mel: Tensor = self.mel(F.pad(clip, (0, max(0, self.least - len(clip)))))
        return (mel + FLOOR).log()

    def filtered(self, mel: Tensor) -> Tensor:
        """Filter (mels, frames) as through another microphone: a random gain at four places of the spectrum, lines between."""
        most = self.settings.filter_db * math.log(10) / 10
        if not most:
            return mel
        gains = most * (2 * torch.rand(1, 1, _FILTER_KNOTS) - 1)
        curve = F.interpolate(gains, size=len(mel), mode="linear", align_corners=True)[0, 0]
        return mel + curve.to(mel)[:, None]

    def warped(self, mel: Tensor) -> Tensor:
        """Warp (mels, frames) -> (mels, other frames): time and spectrum stretched or squeezed by factors of their own."""
        if not (self.settings.time_warp or self.settings.mel_warp):
            return mel
        bands, frames = mel.shape
        time, tract = (1 + most * (2 * float(torch.rand(())) - 1) for most in (self.settings.time_warp, self.settings.mel_warp))
        size = (round(bands * tract), max(POOL[0], round(frames * time)))
        stretched = F.interpolate(mel[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        missing = max(0, bands - len(stretched))
        return torch.cat([stretched[:bands], stretched[-1:].expand(missing, -1)])

    def masked(self, feature: Tensor) -> Tensor:
        """Mask two stretches of frames and two of Mel bands with zero, the clip's mean (SpecAugment, Park et al. 2019)."""
        keep = torch.ones(len(feature), 1, self.settings.mels)
        longest = round(self.settings.time_mask_s * RATE / HOP)
        for dim, most in ((0, longest), (2, self.settings.mel_mask), (0, longest), (2, self.settings.mel_mask)):
            size = keep.shape[dim]
            width = int(torch.randint(min(most, size - 1) + 1, ()))
            start = int(torch.randint(size - width + 1, ()))
            keep.narrow(dim, start, width).zero_()
        return feature * keep.to(feature)


def with_deltas(mel: Tensor) -> Tensor:
    """Stack deltas, (mels, frames) -> (frames, 3, mels); zero mean and unit variance over the clip, channel by channel."""
    delta = torchaudio.functional.compute_deltas(mel)
    stacked = torch.stack([mel, delta, torchaudio.functional.compute_deltas(delta)])
    variance, average = torch.var_mean(stacked, dim=(1, 2), keepdim=True, correction=0)
    return ((stacked - average) / (variance + 1e-5).sqrt()).permute(2, 0, 1)


class Acrnn(nn.Module):
    """Convolutions of 5 frames x 3 bands, the first followed by max-pooling; a linear layer on each frame; a BLSTM."""

    def __init__(self, settings: AcrnnModel) -> None:
        super().__init__()
        widths = [3, settings.first_channels] + [settings.channels] * (settings.layers - 1)
        batch = settings.norm == "batch"  # which cancels a bias: its gradient would be rounding, blown up by AdamW
        reach = (KERNEL[0] // 2, KERNEL[1] // 2)
        convolutions = [nn.Conv2d(before, after, KERNEL, padding=reach, bias=not batch) for before, after in pairwise(widths)]
        self.convolutions = nn.ModuleList(convolutions)
        for convolution in convolutions:  # so that six layers in a row neither blow a clip up nor wipe it out
            nn.init.kaiming_normal_(convolution.weight, a=SLOPE)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
        self.norms = nn.ModuleList([FrameBatchNorm(width) for width in widths[1:]] if batch else [])
        self.linear = nn.Linear(widths[-1] * (settings.mels // POOL[1]), settings.linear)
        self.forwards = nn.LSTM(settings.linear, settings.cells, batch_first=True)
        self.backwards = nn.LSTM(settings.linear, settings.cells, batch_first=True)
        self.width = 2 * settings.cells

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (T, 3, mels), all clips one after another, of `lengths` (B,): frames (B, most, width), padded, and lengths."""
        given, pooled = lengths.tolist(), (lengths // POOL[0]).tolist()
        rooms = [-(-length // POOL[0]) + KERNEL[0] // 2 for length in given]  # of pooled frames, none within reach of another's
        x = insert_gaps(features.transpose(1, 2), given, [POOL[0] * room for room in rooms])
        for index, convolution in enumerate(self.convolutions):
            x = convolution(
                (x if index == 0 else insert_gaps(x, pooled, rooms)).permute(2, 0, 1)[None]
            )  # channels last, in memory
            if index == 0:  # before the rectifier, which is monotonic: the same result with an eighth of the work
                x = F.max_pool2d(x, POOL)
            x = remove_gaps(x[0].permute(1, 2, 0), pooled, rooms)
            x = F.leaky_relu(self.norms[index](x) if self.norms else x, SLOPE)
        x = F.leaky_relu(self.linear(x.transpose(1, 2).flatten(1)), SLOPE)
        most = max(pooled)
        x = insert_gaps(x, pooled, [most] * len(pooled)).view(len(pooled), most, -1)
        # Two directions as two layers, the second on clips turned round: exact without packing, whose backward pass takes
        # four times as long on a CPU.
        turn = _turned(lengths // POOL[0], most).to(x.device)
        return torch.cat([self.forwards(x)[0], _take(self.backwards(_take(x, turn))[0], turn)], dim=-1), lengths // POOL[0]


def _turned(lengths: Tensor, frames: int) -> Tensor:
    """Index each frame, (B, frames), when every clip is turned round within its own length; padding stays last."""
    index = torch.arange(frames)
    last = lengths[:, None] - 1
    return torch.where(index <= last, last - index, index)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Put frames (B, T, D) in the order of `index` (B, T)."""
    return x.gather(1, index[..., None].expand_as(x))
