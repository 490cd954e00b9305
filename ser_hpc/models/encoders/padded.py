"""Run any other audio encoder of transformers' by its own forward, on clips padded to the longest of a call.

Families that no packed front serves: data2vec, SEW, UniSpeech and the conformers. A clip's frames are those that it has alone:
attention is masked, and the convolutions that transformers lets reach into the padding see zeros there, as at a clip's own end.
Where that does not suffice (`configuration.depends_on_padding`: a norm over the whole padded waveform, frames merged in pairs)
only clips of equal length share a call. Batch normalisation, of the conformer, keeps its statistics in training: it would tie
the clips of a batch, and their padding, together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ser_hpc.core.errors import UserError
from ser_hpc.models.encoders import configuration
from ser_hpc.models.encoders.log_mel import LogMel
from ser_hpc.models.encoders.spec_augment import SpecAugment
from ser_hpc.models.norms import patch_layer_norms
from ser_hpc.models.packed import as_floats, at_least_float32, frame_mask, to_device

# Of the transformer: transformers makes it, and does not use it.
_UNUSED = {"wav2vec2-conformer": "pos_conv_embed"}


class PaddedFrontend:
    """The front of these encoders. `normalize`: each clip (of log-Mel frames: each band of it) to zero mean and unit variance.

    `padded`: clips of any length share a call; else `calls_vary` in number from one micro-batch to the next. A clip too short
    for one frame is padded with zeros to it.
    """

    max_seconds: float | None = None
    group: int | None = None

    def __init__(self, model: Any, config: Any, normalize: bool, masks: SpecAugment) -> None:
        self.normalize, self.masks, self.family = normalize, masks, config.model_type
        self.calls_vary = configuration.depends_on_padding(config)
        self.padded = not self.calls_vary
        bands = configuration.mel_bands(config)
        self.mel = LogMel(bands) if bands else None
        self.least = self.mel.least if self.mel else configuration.least_samples(config)
        self._lengths: list[int] = []  # of the call under way, in frames
        self._own: Tensor | None = None  # (B, 1, T), True for its real frames; None: all are
        for owner, name in ((model, "masked_spec_embed"), (model.encoder, _UNUSED.get(self.family, ""))):
            if hasattr(owner, name):
                delattr(owner, name)  # a parameter that nothing uses would hold up ZeRO-3 and plain data parallelism
        patch_layer_norms(model)
        model.encoder.register_forward_pre_hook(self._spec_augment)
        if stem := getattr(model, "feature_extractor", None):
            stem._requires_grad = False  # transformers would have the gradient of the waveform
        for conv in _convolutions(model, self.family):
            conv.register_forward_pre_hook(self._zero_padding)
        for module in model.modules():
            if type(module) is nn.BatchNorm1d:
                module.__class__ = FixedBatchNorm

    def costs(self, samples: np.ndarray) -> np.ndarray:
        """Count a clip's samples."""
        longer: np.ndarray = np.maximum(samples, self.least)
        return longer

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames (T, width) and each clip's number of them, (B,) on the CPU."""
        ((frames,), lengths) = self._run(encoder, samples, offsets, layers=False)
        return frames, lengths

    def hidden_states(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Iterator[Tensor], Tensor]:
        """Return the frames of all layers, see `LayeredFrontend`; all at once. Raises UserError for SEW."""
        if configuration.is_squeezed(encoder.config):
            raise UserError(f"the layers of {self.family} have fewer frames than it returns: use its last layer alone")
        states, lengths = self._run(encoder, samples, offsets, layers=True)
        return iter(states), lengths

    def _run(self, model: Any, samples: Tensor, offsets: Tensor, *, layers: bool) -> tuple[list[Tensor], Tensor]:
        parameter = next(model.parameters())
        given = self._inputs(samples, offsets, parameter.device, at_least_float32(parameter.dtype))
        inputs = [clip.to(parameter.dtype) for clip in given]
        counts = torch.tensor([len(clip) for clip in inputs])
        lengths: list[int] = (counts if self.mel else model._get_feat_extract_output_lengths(counts)).tolist()
        clips = range(len(inputs))
        groups = [list(clips)]
        if not self.padded:
            groups = [
                list(alike) for _, alike in groupby(sorted(clips, key=lambda i: len(inputs[i])), lambda i: len(inputs[i]))
            ]
        rows: list[list[Tensor]] = []  # of each clip: its frames in every state
        for members in groups:
            own = [lengths[i] for i in members]
            states = self._states(model, [inputs[i] for i in members], own, layers)
            rows += [[state[row, :length] for state in states] for row, length in enumerate(own)]
        order = np.argsort([i for members in groups for i in members])
        return [torch.cat([state[i] for i in order]) for state in zip(*rows, strict=True)], torch.tensor(lengths)

    def _states(self, model: Any, inputs: Sequence[Tensor], lengths: list[int], layers: bool) -> list[Tensor]:
        """Run the encoder on one padded call, (clips, frames, width) for each state."""
        counts, device = torch.tensor([len(clip) for clip in inputs]), inputs[0].device
        batch = pad_sequence(list(inputs), batch_first=True)
        self._lengths, self._own, mask = lengths, None, None
        if self.padded:
            mask = frame_mask(counts, batch.shape[1], device).long()
            self._own = frame_mask(torch.tensor(lengths), max(lengths), device)[:, None]
        outputs = model(batch, attention_mask=mask, output_hidden_states=layers)
        return [*(outputs.hidden_states[:-1] if layers else ()), outputs.last_hidden_state]

    def _inputs(self, samples: Tensor, offsets: Tensor, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Make what the encoder takes of each clip: samples (n,) in [-1, 1] or normalised, or log-Mel frames (n, width)."""
        wave = as_floats(to_device(samples, device), dtype)
        clips = torch.split(wave, offsets.diff().tolist())
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            if self.mel is not None:
                padded = [F.pad(clip, (0, max(0, self.least - len(clip)))) for clip in clips]
                return self.mel(padded, self.normalize)
            if self.normalize:
                clips = tuple(_normalized(clip) for clip in clips)
            return [F.pad(clip, (0, max(0, self.least - len(clip)))) for clip in clips]

    def _spec_augment(self, encoder: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Mask what enters the transformer, in training."""
        frames, *others = given
        if encoder.training:
            rooms = [frames.shape[1]] * len(self._lengths)
            frames = self.masks(frames.flatten(0, 1), self._lengths, rooms).view_as(frames)
        return (frames, *others)

    def _zero_padding(self, conv: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        """Make zero what a convolution would see behind a clip, (B, C, T)."""
        (x,) = given
        return (x if self._own is None else x.masked_fill(~self._own, 0.0),)


class FixedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation by the running statistics, in training too; scale and shift are trained."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def _normalized(clip: Tensor) -> Tensor:
    """Do as Wav2Vec2FeatureExtractor; an unreadable clip may be empty."""
    return (clip - clip.mean()) / (clip.var(correction=0) + 1e-7).sqrt() if len(clip) else clip


def _convolutions(model: Any, family: str) -> list[nn.Module]:
    """List the convolutions over frames whose input transformers leaves unmasked."""
    if family == "data2vec-audio":
        return [layer.conv for layer in model.encoder.pos_conv_embed.layers]
    if family == "wav2vec2-conformer":
        return [layer.conv_module.depthwise_conv for layer in model.encoder.layers]
    return []
