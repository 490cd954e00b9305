"""Normalise a probe's features by clip or by speaker (`model.head.normalization`), before a fold's probe is fitted to them.

By speaker, each speaker's clips are moved to the mean and the deviation of the average training speaker; so whatever is fitted,
kept and predicted afterwards is as ever. Where dev and test speakers' own clips are heard for it, the scores are transductive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from ser_hpc.config.heads import ProbeSettings
from ser_hpc.config.settings import Settings
from ser_hpc.corpora.utterance import Metadata
from ser_hpc.corpora.words import WordColumn
from ser_hpc.engine.frozen_encoder import LoadedEncoder, PooledFeatures
from ser_hpc.engine.trial_data import TrialData
from ser_hpc.models.heads.linear_probe import LinearProbe

_LEAST_SCALE = 0.1


def normalize_features(encoder: LoadedEncoder, states: PooledFeatures, settings: Settings, data: TrialData) -> PooledFeatures:
    """Return a fold's features as the settings of its probe want them normalised; damaged clips stay, and take no part."""
    probe = encoder.model.head
    assert isinstance(probe, LinearProbe)
    head = getattr(settings.model, "head", None)
    assert isinstance(head, ProbeSettings)
    if head.normalization == "none":
        return states
    if head.normalization == "clip":
        return replace(states, means=probe.normalize(torch.from_numpy(states.means)).numpy())
    sound = states.positions[states.causes == 0]
    train = np.intersect1d(sound, data.fold.train.positions)
    heard = np.intersect1d(sound, data.fold.positions) if head.normalization == "transductive" else train
    rows, means = np.searchsorted(states.positions, heard), states.means.copy()
    speakers = _person_numbers(data.index.metadata, heard, settings.folds.speaker_aliases)
    width = probe.width // probe.num_statistics
    means[rows] = normalize_by_speaker(means[rows].astype(np.float64), speakers, np.isin(heard, train), width)
    return replace(states, means=means)


def normalize_by_speaker(rows: np.ndarray, speakers: np.ndarray, train: np.ndarray, width: int) -> np.ndarray:
    """Move each speaker's features to the mean and deviation of the average training speaker.

    `rows` (clips, numbers), `width`: as `feature_scale` takes them; `speakers` (clips,) int64: 0, 1, 2 ...; `train` (clips,)
    bool: the clips of training speakers. Means are the training clips'; deviations are from each speaker's own mean. Returns
    (clips, numbers). A speaker's only clip becomes the mean.
    """
    count = np.bincount(speakers)
    own_mean = np.zeros((len(count), rows.shape[1]))
    np.add.at(own_mean, speakers, rows)
    own_mean /= np.maximum(count, 1)[:, None]
    centred = rows - own_mean[speakers]
    found = np.empty_like(rows)
    mean, scale = rows[train].mean(axis=0), feature_scale(centred[train], width)
    for speaker in np.unique(speakers):
        clips = speakers == speaker
        found[clips] = centred[clips] / feature_scale(centred[clips], width) * scale + mean
    return found


def _person_numbers(metadata: Metadata, positions: np.ndarray, same: Mapping[str, str | None]) -> np.ndarray:
    """Number who speaks, int64 (clips,): a speaker is a corpus and a name, but for `same` (folds.speaker_aliases)."""
    names = WordColumn.join(metadata.corpus.take(positions), metadata.speaker.take(positions))
    return names.rename(lambda name: same.get(name) or name).number()[1]


def feature_scale(rows: np.ndarray, width: int) -> np.ndarray:
    """Return what features (clips, numbers) are divided by: their standard deviation, and at least a tenth of the median one of
    the same statistic of the same layer, `width` numbers side by side.

    Where all clips have one length, what depends on it (the mean of position embeddings) varies by rounding alone; divided by
    that, a clip of any other length would be thousands of deviations away, and get any class with certainty.
    """
    deviations = rows.std(axis=0).reshape(-1, width)
    floors = _LEAST_SCALE * np.median(deviations, axis=1, keepdims=True)
    scale: np.ndarray = np.maximum(deviations, floors).reshape(-1)
    return np.where(scale > 0, scale, 1.0)
