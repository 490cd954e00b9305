"""Make exported models known to transformers, once imported: `pipeline("audio-classification", FOLDER)` then loads them.

Only folders of the type `ser_hpc` need it; what is transformers' own loads without. No remote code: the classes are these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    SequenceFeatureExtractor,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from ser_hpc.core.errors import UserError
from ser_hpc.data.prefetch import Crop
from ser_hpc.inference.ensemble import Ensemble
from ser_hpc.inference.folder import CONFIG, MODEL_TYPE, PREPROCESSOR, WEIGHTS, read_model
from ser_hpc.inference.spec import ModelSpec


class SerHpcConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The configuration of an exported model; its key `ser_hpc` says what the model is."""

    model_type = MODEL_TYPE


class SerHpcFeatureExtractor(SequenceFeatureExtractor):
    """Takes sound as it is, 16 kHz and mono: what else an encoder wants is made of it by the model's own front."""

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012  # as transformers declares it

    def __call__(self, raw_speech: Any, sampling_rate: int | None = None, **options: Any) -> BatchFeature:
        """Return `input_values` (B, longest) and `attention_mask`. `raw_speech`: samples (n,) in [-1, 1], or a list of such."""
        if sampling_rate not in (None, self.sampling_rate):
            raise UserError(f"the model takes sound of {self.sampling_rate} Hz, not of {sampling_rate}: resample it first")
        one = hasattr(raw_speech, "ndim") or isinstance(raw_speech[0], float)
        clips = [np.asarray(clip, np.float32) for clip in ([raw_speech] if one else raw_speech)]
        given = BatchFeature({"input_values": clips})
        padded: BatchFeature = self.pad(
            given, padding=True, return_attention_mask=True, return_tensors=options.get("return_tensors")
        )
        return padded


class SerHpcForAudioClassification(PreTrainedModel):  # type: ignore[no-untyped-call]
    """An exported model as one of transformers': logits whose softmax is what `ser_hpc.predict` tells."""

    config_class = SerHpcConfig
    main_input_name = "input_values"
    base_model_prefix = "ensemble"

    def __init__(self, config: SerHpcConfig, ensemble: Ensemble) -> None:
        super().__init__(config)
        self.ensemble = ensemble
        described = ModelSpec.from_json(config.ser_hpc, "its configuration")
        self._task, self._crop = described.main, Crop.of_seconds(described.max_seconds, described.crop)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # whose many options are of files that there are none of here
        cls, name: str | Path, *_: Any, config: Any = None, **options: Any
    ) -> Self:
        """Load a folder, or a repository of the hub, without executing anything of it."""
        folder = Path(name) if Path(name).is_dir() else _fetch(str(name), options)
        model = cls(config or SerHpcConfig.from_pretrained(folder), read_model(folder)[1])
        dtype = options.get("dtype")
        if isinstance(dtype, torch.dtype):
            model.ensemble.to(dtype)
        model.train(False)
        return model

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """Classify padded sound (B, longest) in [-1, 1]: each clip as if it were alone. Returns logits (B, classes)."""
        mask = torch.ones_like(input_values, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if self._crop.samples is not None:
            first = torch.tensor([self._crop.first(int(count)) for count in mask.sum(1)], device=mask.device)[:, None]
            number = mask.cumsum(1)  # from 1
            mask = mask & (number > first) & (number <= first + self._crop.samples)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cpu()]).cumsum(0)
        return SequenceClassifierOutput(logits=self.ensemble(input_values[mask], offsets)[self._task])

    def _init_weights(self, module: Any) -> None:
        """Do nothing: there are no weights but those of the folder."""

    def save_pretrained(self, save_directory: Any, *_: Any, **__: Any) -> None:
        """Refuse: the folder that it was loaded from is what can be copied."""
        raise UserError("copy the folder that this model was exported to: it is written by python -m ser_hpc.export alone")


def _fetch(name: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    known = {
        key: options[key] for key in ("revision", "cache_dir", "token", "local_files_only") if options.get(key) is not None
    }
    return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, PREPROCESSOR], **known))


AutoConfig.register(MODEL_TYPE, SerHpcConfig, exist_ok=True)
AutoModelForAudioClassification.register(SerHpcConfig, SerHpcForAudioClassification, exist_ok=True)
AutoFeatureExtractor.register(SerHpcConfig, SerHpcFeatureExtractor, exist_ok=True)  # type: ignore[no-untyped-call]
