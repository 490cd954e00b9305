"""Make a model's graph anew for clips of equal length, (B, samples): what ONNX can hold, as it knows no rows of packed clips.

The weights are the model's own tensors; encoders are transformers' modules as they come, heads are of the package's kinds.
Each clip is normalised, cut or padded within the graph, as its front does it, so that a clip gives what it gives there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import remove_parametrizations
from transformers import AutoModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ser_hpc.core.errors import UserError
from ser_hpc.inference.ensemble import Ensemble
from ser_hpc.inference.spec import ModelSpec
from ser_hpc.models.encoders.wav2vec2 import Wav2Vec2Frontend
from ser_hpc.models.encoders.whisper import WhisperFrontend
from ser_hpc.models.heads.linear_probe import LinearProbe
from ser_hpc.models.heads.mean_pool import MeanPool
from ser_hpc.models.heads.mlp import Mlp
from ser_hpc.models.heads.pooling import FLOOR, Attention, AttentiveStatistics, Mean, MeanStd
from ser_hpc.models.layer_sum import LayerSum
from ser_hpc.shards import RATE
from ser_hpc.tasks.targets import OverClasses


class Plain(nn.Module):
    """Clips of equal length in, each task's predictions out, in the order of `targets`: calibrated, averaged probabilities of
    what has classes, and numbers on their scale."""

    def __init__(self, spec: ModelSpec, ensemble: Ensemble) -> None:
        """Raises UserError for an encoder or a head that there is no such form of."""
        super().__init__()
        self.encoders = nn.ModuleList(
            _plain_encoder(front, encoder) for front, encoder in zip(ensemble.fronts, ensemble.encoders, strict=True)
        )
        self.ensemble, self.targets = ensemble, dict(spec.targets)
        self.most = None if spec.max_seconds is None else round(spec.max_seconds * RATE)
        self.center = spec.crop == "center"
        self.requires_grad_(False).eval()

    def forward(self, samples: Tensor) -> tuple[Tensor, ...]:
        """Predict `samples` (B, n) float32 in [-1, 1] at 16 kHz; returns (B, width) of each task."""
        heard = self._crop(samples)
        states = [encoder(heard) for encoder in self.encoders]
        outputs = [self._member(k, states[owner]) for k, owner in enumerate(self.ensemble.owners)]
        found = []
        for task, target in self.targets.items():
            combined = self.ensemble.combined(task, target, [each[task] for each in outputs])
            if isinstance(target, OverClasses):
                found.append(combined.softmax(-1))
            else:
                low, high = (float(getattr(target, name)) for name in ("low", "high"))
                found.append(combined * (high - low) + low)
        return tuple(found)

    def _crop(self, samples: Tensor) -> Tensor:
        """Do as data.prefetch.Crop, by a start that a traced graph computes anew for each length."""
        if self.most is None:
            return samples
        if not self.center:
            return samples[:, : self.most]
        start = (torch._shape_as_tensor(samples)[1] - self.most).clamp(min=0) // 2
        return samples[:, start:][:, : self.most]

    def _member(self, number: int, states: Sequence[Tensor]) -> dict[str, Tensor]:
        heads: dict[str, nn.Module] = dict(self.ensemble.heads[number].named_children())
        layer_sum = self.ensemble.layer_sums[number]
        frames = _sum_layers(layer_sum, states) if isinstance(layer_sum, LayerSum) else states[-1]
        return {task.removesuffix("_"): _classify(head, states, frames) for task, head in heads.items()}


def _classify(head: nn.Module, states: Sequence[Tensor], frames: Tensor) -> Tensor:
    """Do what a head does, of `states` (B, T, width) of all layers, and of those frames that it sees, (B, T, width)."""
    if isinstance(head, LinearProbe):
        chosen = states[-1:] if head.layers is None else [states[layer] for layer in head.layers]
        pooled = torch.cat([part for state in chosen for part in _statistics(state, head.std, 0.0)], dim=1)
        return head.classify(head.normalize(pooled))
    if isinstance(head, MeanPool):
        found: Tensor = head.classifier(head.projector(frames).mean(1))
        return found
    if isinstance(head, Mlp):
        x = _pool(head.pooling, frames)
        for layer, norm in zip(head.hidden, head.norms, strict=True):
            x = F.relu(norm(layer(x)))
        outputs: Tensor = head.classifier(x)
        return outputs
    raise UserError(f"there is no ONNX form of a head of the kind {type(head).__name__}: export without --onnx")


def _sum_layers(layer_sum: LayerSum, states: Sequence[Tensor]) -> Tensor:
    """Do as `LayerSum`, whose layer norm is of a width that the graph does not know to be fixed."""
    shares, total = layer_sum.weights.softmax(0), torch.zeros(())
    for layer in layer_sum.layers:
        centred = states[layer] - states[layer].mean(-1, keepdim=True)
        total = total + shares[layer] * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return total


def _pool(pooling: nn.Module, frames: Tensor) -> Tensor:
    if isinstance(pooling, Mean | MeanStd):
        return torch.cat(_statistics(frames, isinstance(pooling, MeanStd), FLOOR), dim=1)
    if isinstance(pooling, Attention):
        weights = pooling.score(pooling.hidden(frames).tanh()).softmax(1)
        mean: Tensor = (weights * frames).sum(1)
        if not isinstance(pooling, AttentiveStatistics):
            return mean
        variance = (weights * (frames - mean[:, None]).square()).sum(1)
        return torch.cat([mean, (variance + FLOOR).sqrt()], dim=1)
    raise UserError(f"there is no ONNX form of a pooling of the kind {type(pooling).__name__}: export without --onnx")


def _statistics(frames: Tensor, std: bool, floor: float) -> list[Tensor]:
    mean = frames.mean(1)
    return [mean, ((frames - mean[:, None]).square().mean(1) + floor).sqrt()] if std else [mean]


def _plain_encoder(front: Any, encoder: Any) -> nn.Module:
    if isinstance(front, Wav2Vec2Frontend):
        return PlainWav2Vec2(front, encoder)
    if isinstance(front, WhisperFrontend):
        return PlainWhisper(front, encoder)
    family = getattr(getattr(encoder, "config", None), "model_type", type(encoder).__name__)
    raise UserError(
        f"there is no ONNX form of {family} here: of encoders, Wav2Vec2, HuBERT, WavLM and Whisper have one. "
        "Export without --onnx"
    )


def _as_it_comes(kind: Any, encoder: Any) -> Any:
    """Build transformers' own module anew, without memory, around the weights of one that packed clips run through."""
    config = copy.deepcopy(encoder.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict(encoder.state_dict(), assign=True)
    return model


class PlainWav2Vec2(nn.Module):
    """Wav2Vec2, HuBERT and WavLM with their waveform's normalisation."""

    def __init__(self, front: Wav2Vec2Frontend, encoder: Any) -> None:
        super().__init__()
        self.model = _as_it_comes(AutoModel.from_config, encoder)
        remove_parametrizations(self.model.encoder.pos_conv_embed.conv, "weight")
        self.normalize, self.least, self.norm_first = front.normalize, front.least, front.norm_first
        self.gated = encoder.config.model_type == "wavlm"

    def forward(self, samples: Tensor) -> list[Tensor]:
        """Return the frames of all layers, (B, T, width) each, as `LayeredFrontend` numbers them."""
        wave = samples
        if self.normalize:
            centred = wave - wave.mean(1, keepdim=True)
            wave = centred / (centred.square().mean(1, keepdim=True) + 1e-7).sqrt()
        wave = _at_least(wave, self.least)
        model = self.model
        projected = model.feature_projection(model.feature_extractor(wave).transpose(1, 2))
        hidden = projected[0] if isinstance(projected, tuple) else projected
        hidden = hidden + model.encoder.pos_conv_embed(hidden)
        hidden = hidden if self.norm_first else model.encoder.layer_norm(hidden)
        states, bias = [hidden], None
        for layer in model.encoder.layers:
            if self.gated:
                hidden, bias = layer(hidden, position_bias=bias)[:2]
            else:
                hidden = layer(hidden)
            states.append(hidden)
        if self.norm_first:
            states[-1] = model.encoder.layer_norm(hidden)
        return states


def _at_least(wave: Tensor, least: int) -> Tensor:
    """Pad (B, n) with zeros to so many samples: in operations of which none looks at a length before it is known."""
    samples = _size(wave, 1)
    return torch.cat([wave, wave.new_zeros(1, least).expand(_size(wave, 0), least)], 1)[:, : samples.clamp(min=least)]


def _size(x: Tensor, dim: int) -> Any:
    """Return a size as a number of the graph, which torch takes for one."""
    return torch._shape_as_tensor(x)[dim]


class PlainWhisper(nn.Module):
    """Whisper's encoder on a clip's real frames (or on the 30 s that it was trained with), with its log-Mel frames: the Fourier
    transform is a product with sines and cosines, which every ONNX runtime has."""

    window: Tensor
    filters: Tensor

    def __init__(self, front: WhisperFrontend, encoder: Any) -> None:
        super().__init__()
        self.model = _as_it_comes(WhisperEncoder, encoder)
        self.pad, self.most, self.stride, self.hop, self.taps = front.pad, front.most, front.stride, front.hop, front.window
        angles = torch.outer(torch.arange(self.taps // 2 + 1), torch.arange(self.taps)).double() * (2 * math.pi / self.taps)
        shape = torch.hann_window(self.taps, dtype=torch.float64)
        self.register_buffer("window", (torch.cat([angles.cos(), angles.sin()]) * shape)[:, None].float())
        self.register_buffer("filters", front.filters.float())

    def forward(self, samples: Tensor) -> list[Tensor]:
        """Return the frames of all layers, (B, T, width) each, as `LayeredFrontend` numbers them."""
        most, model = self.most * self.stride, self.model
        heard = samples[:, :most]
        real = ((_size(heard, 1) + self.stride - 1) // self.stride).clamp(min=1)
        frames = torch.full_like(real, self.most) if self.pad else real
        x = F.gelu(model.conv1(self.log_mel(heard, frames)))
        x = F.gelu(model.conv2(x)).transpose(1, 2)
        hidden = x + model.embed_positions.weight[:frames]
        states = [hidden]
        for layer in model.layers:
            hidden = layer(hidden, None)
            states.append(hidden)
        states[-1] = model.layer_norm(hidden)
        return [state[:, :real] for state in states]

    def log_mel(self, samples: Tensor, frames: Tensor) -> Tensor:
        """Compute (B, bands, 2 * frames), as `WhisperFrontend.log_mel`: a clip begins mirrored and ends in zeros, or mirrored
        where it has the full length."""
        half, most = self.taps // 2, self.most * self.stride
        batch = _size(samples, 0)
        room = samples.new_zeros(1, most).expand(batch, most)
        whole = torch.cat([samples, room], 1)[:, : frames * self.stride]
        # A clip of one sample has no others to mirror: those of the room behind it.
        begin = whole[:, 1 : half + 1].flip(1)
        end = whole[:, -half - 1 : -1].flip(1) * (frames == self.most)
        wave = torch.cat([begin, whole, end, samples.new_zeros(1, 2 * self.hop).expand(batch, 2 * self.hop)], 1)
        spectrum = F.conv1d(wave[:, None], self.window, stride=self.hop)
        real, imaginary = spectrum.square().chunk(2, dim=1)
        power = real + imaginary
        mel = (power.transpose(1, 2) @ self.filters).clamp(min=1e-10).log10()
        # The loudest band sets the floor; the clip's end still reaches two more windows (of a full one there are none).
        seen = torch.minimum(2 * frames + 2, torch.full_like(frames, 2 * self.most))
        floor = mel[:, :seen].amax((1, 2), keepdim=True) - 8
        return ((torch.maximum(mel, floor) + 4) / 4)[:, : 2 * frames].transpose(1, 2)
