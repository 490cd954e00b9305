"""Compute log-Mel frames as Kaldi does, for encoders that take them in place of sound (Wav2Vec2-BERT).

They are those of transformers' SeamlessM4TFeatureExtractor: 25 ms windows every 10 ms, two frames side by side as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor

_WINDOW, _HOP, _FFT = 400, 160, 512
_PREEMPHASIS, _FLOOR = 0.97, 1.192092955078125e-07
_STACKED = 2


class LogMel:
    """`bands`: Mel bands of a frame; `least`: samples that a clip needs for one pair of frames."""

    least = _WINDOW + (_STACKED - 1) * _HOP

    def __init__(self, bands: int) -> None:
        extractor: Any = SeamlessM4TFeatureExtractor(feature_size=bands, num_mel_bins=bands)  # type: ignore[no-untyped-call]
        self.filters = torch.from_numpy(extractor.mel_filters)  # (bins, bands), float64
        self.window = torch.from_numpy(extractor.window)

    def __call__(self, clips: Sequence[Tensor], normalize: bool) -> list[Tensor]:
        """Turn clips (n,) in [-1, 1] into (frames, 2 * bands) each; `normalize`: each band of a clip to zero mean and unit
        variance. In double precision inside: a faint band stands beside ones that are 1e7 times as loud."""
        device, dtype = clips[0].device, clips[0].dtype
        self.filters, self.window = self.filters.to(device), self.window.to(device)
        counts = [(len(clip) - _WINDOW) // _HOP + 1 for clip in clips]
        windows = torch.cat([clip.unfold(0, _WINDOW, _HOP) for clip in clips]).double() * 2**15
        windows = windows - windows.mean(1, keepdim=True)
        before = torch.cat([windows[:, :1], windows[:, :-1]], dim=1)
        power = torch.fft.rfft((windows - _PREEMPHASIS * before) * self.window, n=_FFT).abs().square()
        frames = torch.split((power @ self.filters).clamp(min=_FLOOR).log(), counts)
        if normalize:
            frames = tuple((x - x.mean(0)) / (x.var(0) + 1e-7).sqrt() for x in frames)
        return [x[: len(x) // _STACKED * _STACKED].reshape(-1, _STACKED * x.shape[1]).to(dtype) for x in frames]
