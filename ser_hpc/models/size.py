"""Count a model's parameters and operations from its settings, without torch, before anything starts.

Of Wav2Vec2, HuBERT, WavLM, Whisper, the CNN, and the package's heads, the parameters are those of the built model, one by one
(tests/models/test_size.py). Of other encoders, the recurrent network and what comes from outside they are an estimate: `exact`
tells. Operations (one multiply-add = 2, 50 frames a second): stem = sum over its convolutions of 2 n C_out C_in k; linear
layers of a transformer layer 2 T per weight; attention 4 T^2 d.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ser_hpc.config.adapters import LowRankSettings, QloraSettings
from ser_hpc.config.heads import (
    AttentionPooling,
    AttentiveStatisticsPooling,
    HeadSettings,
    MeanPooling,
    MeanPoolSettings,
    MeanStdPooling,
    MlpSettings,
    ProbeSettings,
)
from ser_hpc.config.settings import AcrnnModel, CnnModel, EncoderModel, ModelSettings

_FRAMES_A_SECOND = 50
_CONVOLUTIONS = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
_BASE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "num_buckets": 320,
    "conv_bias": False, "feat_extract_norm": "group", "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16,
    "feat_proj_layer_norm": True, "do_stable_layer_norm": False, "adapter_attn_dim": None,
}  # fmt: skip
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_WHISPER = {"d_model": 384, "encoder_layers": 4, "encoder_ffn_dim": 1536, "num_mel_bins": 80, "max_source_positions": 1500}
_ALIASES = {"hidden_size": "d_model", "num_hidden_layers": "encoder_layers"}  # transformers' own other names for them
_SPEECH = ("wav2vec2", "hubert", "wavlm")
_CONFORMERS = ("wav2vec2-bert", "wav2vec2-conformer")


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters by part, and how many of all are trained; `flops`: of a forward pass, for a second of audio; `exact`: the
    counts are those of the built model; `four_bit`: how many parameters are kept in four bits."""

    parts: dict[str, int]
    trained: int
    flops: float
    exact: bool
    four_bit: int = 0

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())


def model_size(model: ModelSettings, heads: Mapping[str, tuple[HeadSettings, int]], clip_seconds: float) -> ModelSize:
    """Count a model's. `heads`: each task's, and the width of its outputs; `clip_seconds`: a clip's length. Of an encoder from
    outside the package wav2vec2-base is counted, for want of better."""
    if isinstance(model, AcrnnModel):
        parameters, flops = _acrnn(model)
        return ModelSize({"network": parameters}, parameters, flops, exact=False)
    if isinstance(model, CnnModel):
        network, flops = _cnn(model)
        counts = [_head(settings, model.channels[-1], outputs, 1) for settings, outputs in heads.values()]
        parts = {"network": network, "heads" if len(counts) > 1 else "head": sum(count or 0 for count in counts)}
        return ModelSize(parts, sum(parts.values()), flops, exact=None not in counts)
    exact = isinstance(model, EncoderModel)
    model = model if isinstance(model, EncoderModel) else EncoderModel()
    shape, known = _shape(model)
    whisper = shape["model_type"] == "whisper"
    width, layers = int(shape["hidden_size"]), int(shape["num_hidden_layers"])
    stem, below, layer, above = _whisper(shape) if whisper else _speech(shape)
    parts = {"encoder": stem + below + layers * layer + above + (_relative(shape) if shape["model_type"] == "wavlm" else 0)}
    states = layers + 1
    if model.layers == "weighted":
        parts["sum of layers"] = states
    counts = [_head(settings, width, outputs, states) for settings, outputs in heads.values()]
    parts["heads" if len(counts) > 1 else "head"] = sum(count for count in counts if count is not None)
    frozen = _frozen(model, parts["encoder"], stem, below, layer, shape)
    lora = _lora(model, shape)
    if lora:
        parts["adapter"] = lora
    if model.adapter is not None:  # bitfit's biases, and what one from outside trains, are little beside it
        frozen = parts["encoder"]
    known = known and None not in counts and (model.adapter is None or lora is not None)
    exact = exact and known and shape["model_type"] in (*_SPEECH, "whisper")
    flops = _stem_flops(shape) + layers * (
        2 * _FRAMES_A_SECOND * layer + 4 * _FRAMES_A_SECOND * (_FRAMES_A_SECOND * clip_seconds) * width
    )
    return ModelSize(parts, sum(parts.values()) - frozen, flops, exact, _four_bit(model, shape))


def _shape(model: EncoderModel) -> tuple[dict[str, Any], bool]:
    """Return the encoder's sizes, and whether they are known: of a hub name that is not a folder they are guessed by it."""
    given, known = model.config, True
    if given is None:
        local = Path(model.weights or "") / "config.json"
        known = local.is_file()
        given = json.loads(local.read_text(encoding="utf-8")) if known else _guessed(model.weights or "")
    shape: dict[str, Any] = {"model_type": "wav2vec2", **_CONVOLUTIONS, **_BASE}
    if given.get("model_type") == "whisper":
        shape |= _WHISPER | {_ALIASES.get(name, name): value for name, value in given.items()}
        shape |= {"hidden_size": shape["d_model"], "num_hidden_layers": shape["encoder_layers"]}
    else:
        shape |= given
    if model.num_layers is not None:
        shape["num_hidden_layers"] = min(model.num_layers, shape["num_hidden_layers"])
    return shape, known


def _guessed(name: str) -> dict[str, Any]:
    name = name.lower()
    if "whisper" in name:
        sizes = {"tiny": (384, 4), "base": (512, 6), "small": (768, 12), "medium": (1024, 24), "large": (1280, 32)}
        width, layers = next((size for word, size in sizes.items() if word in name), sizes["base"])
        bands = 128 if "v3" in name or "turbo" in name else 80
        return {
            "model_type": "whisper",
            "d_model": width,
            "encoder_layers": layers,
            "encoder_ffn_dim": 4 * width,
            "num_mel_bins": bands,
        }
    family = next((family for family in _SPEECH if family in name), "wav2vec2")
    return {"model_type": family} | (_LARGE if "large" in name or "xls" in name or "xlsr" in name else {})


def _speech(shape: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Count stem, what lies between it and the layers, a layer, and what is above; without the mask embedding."""
    width, ff, channels = shape["hidden_size"], shape["intermediate_size"], [1, *shape["conv_dim"]]
    if shape["model_type"] == "wav2vec2-bert":
        channels = [1]
    normalised = len(channels) - 1 if shape["feat_extract_norm"] == "layer" else min(1, len(channels) - 1)
    stem = sum(
        before * after * kernel for (before, after), kernel in zip(pairwise(channels), shape["conv_kernel"], strict=False)
    )
    stem += sum(channels[1:]) * bool(shape["conv_bias"]) + 2 * sum(channels[1 : 1 + normalised])
    last, taps = channels[-1], shape["num_conv_pos_embeddings"]
    normed = shape["model_type"] != "hubert" or shape["feat_proj_layer_norm"]
    below = 2 * last * normed + last * width + width  # the projection, and its norm
    below += width * (width // shape["num_conv_pos_embedding_groups"]) * taps + taps + width + 2 * width
    layer = 4 * (width * width + width) + 2 * width * ff + ff + width + 4 * width
    if shape["model_type"] in _CONFORMERS:
        layer = 23 * width * width
    if shape["model_type"] == "wavlm":
        heads = shape["num_attention_heads"]
        layer += 8 * (width // heads) + 8 + heads
    if shape["model_type"] == "wav2vec2" and shape["do_stable_layer_norm"] and shape["adapter_attn_dim"]:
        layer += 2 * width + 2 * width * shape["adapter_attn_dim"] + shape["adapter_attn_dim"] + width  # MMS's, of a language
    return stem, below, layer, 0


def _relative(shape: Mapping[str, Any]) -> int:
    """Count WavLM's relative positions, which its first layer alone has."""
    return int(shape["num_buckets"] * shape["num_attention_heads"])


def _whisper(shape: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Count the two convolutions, the table of positions (never trained), a layer, and the norm above."""
    width, ff = shape["d_model"], shape["encoder_ffn_dim"]
    stem = 3 * width * (shape["num_mel_bins"] + width) + 2 * width
    layer = 4 * width * width + 3 * width + 2 * width * ff + ff + width + 4 * width
    return stem, shape["max_source_positions"] * width, layer, 2 * width


def _frozen(model: EncoderModel, encoder: int, stem: int, below: int, layer: int, shape: Mapping[str, Any]) -> int:
    """Count what is not trained: as `models.encoders.pretrained` freezes."""
    if model.freeze == "encoder":
        return encoder
    table = below if shape["model_type"] == "whisper" else 0
    if not model.freeze_layers:
        return table + (stem if model.freeze == "feature_encoder" else 0)
    if not table and shape.get("do_stable_layer_norm"):
        below -= 2 * int(shape["hidden_size"])  # the last norm, which such an encoder has above its layers
    relative = _relative(shape) if shape["model_type"] == "wavlm" else 0
    return stem + below + model.freeze_layers * layer + relative


def _lora(model: EncoderModel, shape: Mapping[str, Any]) -> int | None:
    """Count what LoRA adds beside its default targets, in the layers that are not frozen; None: there is none, or elsewhere."""
    adapter = model.adapter
    if not isinstance(adapter, LowRankSettings) or adapter.targets:
        return None
    width, ff = int(shape["hidden_size"]), int(shape["encoder_ffn_dim" if "encoder_ffn_dim" in shape else "intermediate_size"])
    layer = adapter.rank * (4 * 2 * width + 2 * (width + ff)) + adapter.dora * (4 * width + ff + width)
    return (int(shape["num_hidden_layers"]) - model.freeze_layers) * layer


def _four_bit(model: EncoderModel, shape: Mapping[str, Any]) -> int:
    """Count the matrices of attention and of the feed-forward layers, which QLoRA quantises in every layer, trained or not."""
    if not isinstance(model.adapter, QloraSettings):
        return 0
    width, ff = int(shape["hidden_size"]), int(shape["encoder_ffn_dim" if "encoder_ffn_dim" in shape else "intermediate_size"])
    return int(shape["num_hidden_layers"]) * (4 * width * width + 2 * width * ff)


def _head(head: HeadSettings, width: int, outputs: int, states: int) -> int | None:
    """Count a head's parameters; None: it is from outside the package."""
    match head:
        case MeanPoolSettings():
            return width * head.projection + head.projection + head.projection * outputs + outputs
        case ProbeSettings():
            layers = states if head.layers == "all" else 1 if head.layers == "last" else len(set(head.layers))
            return (width * layers * (2 if head.statistics == "mean_std" else 1) + 1) * outputs
        case MlpSettings():
            match head.pooling:
                case MeanPooling():
                    pooled, pooling = width, 0
                case MeanStdPooling():
                    pooled, pooling = 2 * width, 0
                case AttentionPooling(hidden=hidden):
                    pooled, pooling = width, width * hidden + hidden + hidden + 1
                case AttentiveStatisticsPooling(hidden=hidden):
                    pooled, pooling = 2 * width, width * hidden + hidden + hidden + 1
                case _:
                    return None
            widths: Sequence[int] = [pooled, *head.hidden, outputs]
            norms = 2 * sum(head.hidden) if head.norm != "none" else 0
            return pooling + norms + sum(before * after + after for before, after in pairwise(widths))
    return None


def _stem_flops(shape: Mapping[str, Any]) -> float:
    if shape["model_type"] == "whisper":
        width = int(shape["d_model"])
        return 6.0 * width * _FRAMES_A_SECOND * (2 * int(shape["num_mel_bins"]) + width)
    if shape["model_type"] == "wav2vec2-bert":
        return 0.0
    flops, rate, before = 0.0, 16_000.0, 1
    for after, kernel, stride in zip(shape["conv_dim"], shape["conv_kernel"], shape["conv_stride"], strict=False):
        rate /= stride
        flops += 2 * rate * after * before * kernel
        before = after
    return flops


def _cnn(model: CnnModel) -> tuple[int, float]:
    parameters, flops, frames, bands, before = 0, 0.0, 100.0, model.mels, 1  # frames of a second
    for after in model.channels:
        parameters += 9 * before * after + (2 * after if model.norm == "batch" else after)
        flops += 2 * 9 * before * after * frames * bands
        frames, bands, before = frames / 2, bands // 2, after
    return parameters, flops


def _acrnn(model: AcrnnModel) -> tuple[int, float]:
    mels, frames = model.mels, 100  # a second; the first pooling leaves half the frames and a quarter of the bands
    first = 2 * frames * mels * model.first_channels * 3 * 15
    pooled = frames / 2 * (mels // 4)
    rest = sum(
        2 * pooled * model.channels * before * 15 for before in [model.first_channels] + [model.channels] * (model.layers - 2)
    )
    linear = model.channels * (mels // 4) * model.linear
    lstm = 2 * 4 * model.cells * (model.linear + model.cells)
    convolutions = 15 * (3 * model.first_channels + model.first_channels * model.channels)
    parameters = convolutions + 15 * max(0, model.layers - 2) * model.channels**2 + linear + lstm
    return parameters, first + rest + 2 * frames / 2 * (linear + lstm)
