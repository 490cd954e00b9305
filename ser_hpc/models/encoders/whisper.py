"""Run Whisper's encoder on packed clips: transformers' modules and weights, run on each clip's real frames alone.

Whisper was trained on 30 seconds whatever the clip's length, and transformers accepts nothing else: 7 times the work for clips
of 4.5 s. Here the encoder ends where the clip ends: its convolutions see zeros there, its table of positions is cut. Frames
thus differ from those of the padded original, whose attention also reaches the silence; `pad` brings that back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor

from ser_hpc.models.encoders.packed_attention import PACKED
from ser_hpc.models.encoders.spec_augment import SpecAugment
from ser_hpc.models.norms import patch_layer_norms
from ser_hpc.models.packed import Packing, as_floats, at_least_float32, fft_rows, insert_gaps, last_of, remove_gaps, to_device

RATE = 16_000
GAP = 4  # Mel frames between clips: more than any window or kernel reaches across, and even, as conv2 halves the rate


class WhisperFrontend:
    """The front: log-Mel frames as WhisperFeatureExtractor's, on the model's device; longer clips are cut to the encoder's
    full length (30 s). `pad`: every clip is padded with silence to it, as in training; what is pooled are the real frames.
    """

    padded = False
    group: int | None = None

    def __init__(self, model: Any, config: Any, pad: bool, masks: SpecAugment) -> None:
        extractor: Any = WhisperFeatureExtractor(feature_size=config.num_mel_bins)  # type: ignore[no-untyped-call]
        self.window, self.hop = extractor.n_fft, extractor.hop_length
        self.filters = torch.from_numpy(extractor.mel_filters)  # (bins, bands)
        self.pad, self.masks = pad, masks
        self.stride = 2 * self.hop  # samples per frame
        self.most = config.max_source_positions
        self.max_seconds: float | None = self.most * self.stride / RATE
        patch_layer_norms(model)
        model.set_attn_implementation(PACKED)

    def costs(self, samples: np.ndarray) -> np.ndarray:
        """Count whole frames, or the whole window."""
        most = np.full_like(samples, self.most * self.stride)
        return most if self.pad else np.minimum(-(-samples // self.stride) * self.stride, most)

    def __call__(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames (T, width) and each clip's number of them, (B,) on the CPU."""
        states, lengths = self.hidden_states(encoder, samples, offsets)
        return last_of(states), lengths

    def hidden_states(self, encoder: nn.Module, samples: Tensor, offsets: Tensor) -> tuple[Iterator[Tensor], Tensor]:
        """Return the frames of all layers, see `LayeredFrontend`."""
        model: Any = encoder
        parameter = next(encoder.parameters())
        given: list[int] = offsets.diff().tolist()
        lengths = [min(length, self.most * self.stride) for length in given]
        real = Packing(tuple(max(1, -(-length // self.stride)) for length in lengths), parameter.device)
        frames = Packing((self.most,) * len(lengths), parameter.device) if self.pad else real

        clips = remove_gaps(to_device(samples, parameter.device), lengths, given)
        with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
            mel, own = self.log_mel(clips, lengths, frames, at_least_float32(parameter.dtype))
            if model.training:
                heard = [-(-length // self.hop) for length in lengths]
                mel = self.masks(mel, heard, [2 * length + GAP for length in frames.lengths])
        x = F.gelu(model.conv1(mel.to(parameter.dtype).T[None]))
        x = x * own.to(x.dtype)  # conv2 must see zeros around a clip again
        x = F.gelu(model.conv2(x))[0].T
        x = remove_gaps(x, frames.lengths, [length + GAP // 2 for length in frames.lengths])
        hidden = (x + model.embed_positions(frames.positions).to(x.dtype))[None]
        hidden = F.dropout(hidden, p=model.dropout, training=model.training)
        states = self.transformer(model, hidden, frames)
        own_states = (remove_gaps(state, real.lengths, frames.lengths) if self.pad else state for state in states)
        return own_states, torch.tensor(real.lengths)

    def transformer(self, model: Any, hidden: Tensor, frames: Packing) -> Iterator[Tensor]:
        """Do to each clip what transformers' layers do to one; yields (T, width), before the first layer and after each."""
        for layer in model.layers:
            yield hidden[0]
            hidden = layer(hidden, None, packing=frames)
        yield model.layer_norm(hidden)[0]

    def log_mel(self, samples: Tensor, lengths: list[int], frames: Packing, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Compute two Mel frames for each of `frames`, then `GAP` of zeros, clip after clip: (Mel frames, bands); and a row of
        the same length, 1 where they are a clip's and 0 in the gaps.

        A clip ends in zeros and begins mirrored, as the extractor's does; one of the full length also ends mirrored.
        """
        device, half, counts = frames.device, self.window // 2, [2 * length for length in frames.lengths]
        rooms = Packing(tuple(count + GAP for count in counts), device)
        wave = insert_gaps(samples, lengths, [room * self.hop for room in rooms.lengths])
        rows = fft_rows(rooms.total, device)
        spare = (rows - rooms.total) * self.hop
        wave = F.pad(as_floats(wave, dtype), (half, half + spare))
        starts, near = rooms.ends[:-1, None].long() * self.hop + half, torch.arange(1, half + 1, device=device)
        wave[starts - near] = wave[starts + near]
        full = [i for i, length in enumerate(frames.lengths) if length == self.most]
        if full:
            last = starts[to_device(torch.tensor(full), device)] + self.most * self.stride - 1
            wave[last + near] = wave[last - near]

        self.filters = self.filters.to(device, dtype)
        windows = wave.unfold(0, self.window, self.hop) * torch.hann_window(self.window, device=device, dtype=dtype)
        power = torch.fft.rfft(windows[:rows])[: rooms.total].abs().square()
        mel = (power @ self.filters).clamp(min=1e-10).log10()
        # The loudest band sets the floor: the extractor looks for it in two more windows, which the clip's end still reaches.
        seen = to_device(torch.tensor([min(count + 2, 2 * self.most) for count in counts]), device)
        heard = mel.amax(1).masked_fill(rooms.positions >= rooms.repeated(seen), -torch.inf)
        loudest = torch.segment_reduce(heard, "max", lengths=rooms.counts, unsafe=True)
        mel = (torch.maximum(mel, rooms.repeated(loudest - 8)[:, None]) + 4) / 4
        own = (rooms.positions < rooms.repeated(2 * frames.counts)).to(dtype)
        return mel * own[:, None], own
