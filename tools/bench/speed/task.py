"""What every contender of train_speed.py is given: an encoder under a head, in transformers' format, and clips in shards.

Weights are random: only their shapes decide the speed. Lengths are like IEMOCAP's (log-normal, mean 4.5 s, standard deviation
3.1 s, between 0.6 and 30 s), the sound is noise. Dropout, layerdrop and masking are off for all, so that all compute one loss.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from transformers import AutoConfig, AutoModelForAudioClassification, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.data.sampler import epoch_order
from ser_hpc.shards import RATE
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ClipReader, clip_extents
from ser_hpc.shards.write import pack

_EMOTIONS = ("angry", "happy", "neutral", "sad")
_LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
# A classifier has no decoder, but ser_hpc takes Whisper's encoder out of a whole Whisper: one of a layer costs it little.
_DECODER = {"decoder_layers": 1, "decoder_ffn_dim": 64, "decoder_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "wav2vec2-base": {"model_type": "wav2vec2"},
    "wav2vec2-large": {"model_type": "wav2vec2", "conv_bias": True, **_LAYER_NORM},
    "hubert-large": {"model_type": "hubert", "conv_bias": True, **_LAYER_NORM},
    "wavlm-large": {"model_type": "wavlm", **_LAYER_NORM},
    "whisper-large-v3": {"model_type": "whisper", "num_mel_bins": 128, **_DECODER},
}
# Width, layers, heads, inner width of an encoder.
_LARGE = (1024, 24, 16, 4096)
_REAL = {"wav2vec2-base": (768, 12, 12, 3072), "whisper-large-v3": (1280, 32, 20, 5120)}
_SCALED = {"tiny": (32, 2, 4, 64), "small": (256, 4, 4, 1024)}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIZES = (*_SCALED, "real")


def configuration(family: str, size: str) -> dict[str, Any]:
    """Arguments of transformers' configuration. Scaled-down stems are half as wide as the encoder, as a large one's."""
    width, layers, heads, inner = _SCALED[size] if size in _SCALED else _REAL.get(family, _LARGE)
    shape: dict[str, Any]
    if family.startswith("whisper"):
        shape = {"d_model": width, "encoder_layers": layers, "encoder_attention_heads": heads, "encoder_ffn_dim": inner}
    else:
        shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner}
        if size in _SCALED:
            shape["conv_dim"] = [width // 2] * 7
    return {**FAMILIES[family], **shape}


@dataclass(frozen=True, slots=True)
class Task:
    """`weights`: a folder as transformers saves one, its extractor with it; `shards`: a packed dataset; `update`: utterances
    per optimizer step; `precision` of ours and of the peers that may choose: fp32 or bf16; `clock`: wall or cpu; `train`: more
    settings of ours (`train.*`).
    """

    weights: Path
    shards: Path
    device: str
    precision: str
    update: int
    frozen_stem: bool
    threads: int
    clock: str
    train: Mapping[str, Any]

    @property
    def whisper(self) -> bool:
        return bool(self.config.model_type == "whisper")

    @property
    def most_s(self) -> float | None:
        """What the encoder can hear of a clip."""
        return 30.0 if self.whisper else None

    @property
    def config(self) -> Any:
        return AutoConfig.from_pretrained(self.weights)


class Clips:
    """The packed clips: `targets` (num_clips,) int64; `waves`: int16 samples of each, in memory."""

    def __init__(self, shards: Path) -> None:
        self.index = ShardIndex.load(shards)
        self.classes, targets = np.unique(self.index.metadata.emotion.astype(str), return_inverse=True)
        self.targets = targets.astype(np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def waves(self) -> list[np.ndarray]:
        reader = ClipReader(self.index.roots)
        waves = reader.read(clip_extents(self.index, np.arange(len(self))))
        reader.close()
        for wave in waves:
            if not isinstance(wave, np.ndarray):
                raise wave
        return [wave for wave in waves if isinstance(wave, np.ndarray)]

    def floats(self, position: int) -> np.ndarray:
        """float32 in [-1, 1]: how every peer's own features begin."""
        return self.waves[position].astype(np.float32) / 32768

    def drawn(self, number: int, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of round `number`: an update that warms up, not counted, and every clip that fills whole updates."""
        order = epoch_order(0, number, len(self))
        return order[-update:], order[: len(self) // update * update]


def draw_weights(config: Mapping[str, Any], classes: int, dropout: float, folder: Path) -> None:
    """A classifier of random weights and its feature extractor, as transformers saves them."""
    shape: Any = AutoConfig.for_model(**config, num_labels=classes)
    for name in shape.to_dict():
        if name.endswith("layerdrop"):
            setattr(shape, name, 0.0)
        elif name == "dropout" or name.endswith("_dropout"):
            setattr(shape, name, dropout)
    shape.apply_spec_augment, shape.mask_time_prob, shape.mask_feature_prob = False, 0.0, 0.0
    torch.manual_seed(0)
    model_class: Any = AutoModelForAudioClassification
    model_class.from_config(shape).save_pretrained(folder)
    extractor: Any
    if shape.model_type == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=shape.num_mel_bins)  # type: ignore[no-untyped-call]
    else:  # as published: models with layer normalisation in the stem are given masks, those with group normalisation none
        masks = shape.feat_extract_norm == "layer"
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=masks)  # type: ignore[no-untyped-call]
    extractor.save_pretrained(folder)


def draw_clips(count: int, seed: int, workers: int, folder: Path, mean_s: float = 4.5, std_s: float = 3.1) -> None:
    """Pack `count` clips of noise into `folder`."""
    rng = np.random.default_rng(seed)
    spread = np.sqrt(np.log(1 + (std_s / mean_s) ** 2))
    seconds = rng.lognormal(np.log(mean_s) - spread**2 / 2, spread, count).clip(0.6, 30)
    with tempfile.TemporaryDirectory() as wavs:
        utterances = []
        for i, length in enumerate(seconds):
            path = Path(wavs) / f"c{i:05d}.wav"
            soundfile.write(path, 0.1 * rng.standard_normal(int(length * RATE), dtype=np.float32), RATE, subtype="PCM_16")
            utterances.append(Utterance("noise", path.stem, path, f"s{i % 10}", _EMOTIONS[i % len(_EMOTIONS)]))
        pack(utterances, folder, workers=workers)


def quiet() -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
