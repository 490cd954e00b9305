"""Tiny encoders of every family, and clips of awkward lengths, for the tests of the models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ser_hpc.config.heads import AttentiveStatisticsPooling, MlpSettings
from ser_hpc.config.settings import AcrnnModel, CnnModel, EncoderModel, Model

_SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "wav2vec2, group norm": {"model_type": "wav2vec2", **_SHAPE},
    "wav2vec2, layer norm": {"model_type": "wav2vec2", **_SHAPE, **_LAYER_NORM},
    "hubert": {"model_type": "hubert", **_SHAPE},
    "wavlm, group norm": {"model_type": "wavlm", **_SHAPE},
    "wavlm, layer norm": {"model_type": "wavlm", **_SHAPE, **_LAYER_NORM},
    "whisper": {
        "model_type": "whisper", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
        "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "max_source_positions": 100,
        "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    },
}  # fmt: skip
_CONFORMER = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "conv_depthwise_kernel_size": 7}
# Those that run by their own forward; the shapes that change how they are padded.
OTHERS: dict[str, dict[str, Any]] = {
    "data2vec": {"model_type": "data2vec-audio", **_SHAPE, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7},
    "unispeech, group norm": {"model_type": "unispeech", **_SHAPE},
    "unispeech, layer norm": {"model_type": "unispeech", **_SHAPE, **_LAYER_NORM},
    "unispeech-sat": {"model_type": "unispeech-sat", **_SHAPE},
    "sew": {"model_type": "sew", **_SHAPE, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]},
    "sew-d": {"model_type": "sew-d", **_SHAPE, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]},
    "conformer, relative": {"model_type": "wav2vec2-conformer", **_SHAPE, **_CONFORMER, "feat_extract_norm": "layer"},
    "conformer, rotary": {
        "model_type": "wav2vec2-conformer", **_SHAPE, **_CONFORMER, "feat_extract_norm": "layer",
        "position_embeddings_type": "rotary",
    },
    "conformer, group norm": {"model_type": "wav2vec2-conformer", **_SHAPE, **_CONFORMER},
    "wav2vec2-bert": {
        "model_type": "wav2vec2-bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "feature_projection_input_dim": 32, "conv_depthwise_kernel_size": 7,
        "output_hidden_size": 32,
    },
}  # fmt: skip
ENCODERS = {name: EncoderModel(weights=None, config=config, dropout=0.0) for name, config in CONFIGS.items()}
OTHER_ENCODERS = {name: EncoderModel(weights=None, config=config, dropout=0.0) for name, config in OTHERS.items()}
ACRNN = AcrnnModel(first_channels=6, channels=8, layers=3, linear=16, cells=8, hidden=8, mels=16, dropout=0.0)
CNN = CnnModel(channels=(6, 8, 12), mels=18, head=MlpSettings(pooling=AttentiveStatisticsPooling(hidden=4), hidden=(8,)))
MODELS: dict[str, Model] = {
    **ENCODERS,
    "acrnn": ACRNN.model_copy(update={"norm": "none"}),
    "acrnn, batch norm": ACRNN,
    "cnn": CNN.model_copy(update={"norm": "none"}),
    "cnn, batch norm": CNN,
}


def clips(*lengths: int) -> list[Tensor]:
    """Noise as int16, its loudness and colour unlike from clip to clip."""
    generator = torch.Generator().manual_seed(sum(lengths))
    noise = [torch.randn(n, generator=generator) for n in lengths]
    coloured = [wave.cumsum(0) / 5 if i % 2 else wave for i, wave in enumerate(noise)]
    return [(wave * 300 * (i + 1)).clamp(-32768, 32767).to(torch.int16) for i, wave in enumerate(coloured)]


def batch(waves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Samples and offsets of a ragged batch."""
    return torch.cat(waves), torch.tensor([0, *(len(wave) for wave in waves)]).cumsum(0)
