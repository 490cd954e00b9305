"""One clip: heard, measured, and encoded if it is wanted."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards import audio
from ser_hpc.shards.quality import ClipMeasurements, QualityRules

_IN_MEMORY = 1 << 24  # samples; the FLAC of longer clips is made on disk
_AT_ONCE = 1 << 20  # bytes


def encode_clip(
    utterance: Utterance, rules: QualityRules, unwanted: Callable[[ClipMeasurements], bool], folder: Path
) -> tuple[ClipMeasurements, BinaryIO | None]:
    """What there is to know of a clip, and its FLAC if it is wanted. One whose header tells that it is not is not decoded.

    `folder`: for the FLAC of hours, which has no name there and needs no memory.
    """
    source = utterance.audio_path, utterance.start_s, utterance.end_s
    try:
        if rules.policies["too_long"] == "drop":  # hours of sound, perhaps
            outline = audio.read_header(*source)
            announced = ClipMeasurements(utterance.key, num_samples=outline.num_samples, doubtful=outline.doubtful)
            if rules.drops(announced):
                return announced, None
        heard = audio.decode(*source)
    except audio.BadClipError as error:
        return ClipMeasurements(utterance.key, reason=str(error)), None
    measures = heard.clipped, audio.level_db(heard.samples), "", heard.doubtful, heard.out_of_range, heard.cancelled
    clip = ClipMeasurements(utterance.key, "", len(heard.samples), *measures)
    if unwanted(clip):
        return replace(clip, sound=audio.samples_hash(heard.samples)), None
    payload = _flac(heard.samples, folder)
    return replace(clip, sound=audio.flac_samples_hash(next(blocks(payload)))), payload


def _flac(samples: np.ndarray, folder: Path) -> BinaryIO:
    """A clip's FLAC, in memory or, if it is long, on disk."""
    if len(samples) <= _IN_MEMORY:
        payload: BinaryIO = io.BytesIO()
        audio.write_flac(samples, payload)
        return payload
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    try:
        audio.write_flac(samples, file.fileno())
        if audio.flac_samples_hash(os.pread(file.fileno(), 42, 0)) == audio.samples_hash(samples):  # the encoder writes it last
            return file
    except (RuntimeError, AssertionError):  # soundfile's, for what could not be written
        pass
    file.close()
    raise OSError(errno.ENOSPC, "there was no room for an hour-long clip while it was encoded (is the disk full?)")


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """All that a file holds."""
    file.seek(0)
    while block := file.read(_AT_ONCE):
        yield block
