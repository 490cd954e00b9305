"""Refuse clips that the model cannot take when a run is planned, long before a trial would fail for it."""

from __future__ import annotations

import json
import math

import numpy as np

from ser_hpc.config.settings import AcrnnModel, EncoderModel, Settings
from ser_hpc.core.errors import UserError
from ser_hpc.shards.index import ShardIndex

WHISPER_SECONDS = 30.0


def check_clip_lengths(settings: Settings, index: ShardIndex) -> None:
    """Raise UserError where a clip is longer than Whisper's window and `data.max_seconds` does not cut it."""
    model, limit = settings.model, settings.data.max_seconds
    longest = float(index.metadata.seconds.max())
    if limit is not None or not isinstance(model, EncoderModel) or longest <= WHISPER_SECONDS:
        return
    if "whisper" in json.dumps([model.weights, model.config]).lower():
        raise UserError(
            f"the longest clip lasts {longest:.1f} s and Whisper's window is {WHISPER_SECONDS:.0f} s: set "
            f"data.max_seconds={WHISPER_SECONDS:.0f} to cut longer clips to their first {WHISPER_SECONDS:.0f} s"
        )


def check_norm_groups(settings: Settings, seconds: np.ndarray) -> None:
    """Raise UserError where clips that normalise each other, and so share a micro-batch, exceed `train.budget_seconds`.

    `seconds`: lengths of the clips that have a class, (num_clips,).
    """
    model, train = settings.model, settings.train
    if not isinstance(model, AcrnnModel) or model.norm != "batch" or train.budget_seconds is None:
        return
    clips, longest = min(model.norm_group, train.global_batch), min(float(seconds.max()), settings.data.max_seconds or math.inf)
    if clips * longest > train.budget_seconds:
        raise UserError(
            f"model.norm=batch normalises {clips} clips by each other (model.norm_group), padded to the longest of them: up to "
            f"{clips} x {longest:.1f} s, which train.budget_seconds={train.budget_seconds:g} would divide. Leave "
            "train.budget_seconds out or raise it, cut clips with data.max_seconds, or take smaller groups"
        )
