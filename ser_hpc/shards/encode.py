"""Decode and measure one clip, and encode it to FLAC if it is to be packed; the work of a packing task, per clip."""

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
from ser_hpc.shards.fingerprint import NO_WORDS, fingerprint
from ser_hpc.shards.quality import ClipMeasurements, QualityRules
from ser_hpc.shards.source import UNREADABLE, open_source

_IN_MEMORY = 1 << 24  # samples; the FLAC of longer clips is made on disk
_AT_ONCE = 1 << 20  # bytes


def encode_clip(
    utterance: Utterance,
    rules: QualityRules,
    unwanted: Callable[[ClipMeasurements], bool],
    folder: Path,
    digests: dict[Path, str],
    *,
    fingerprinted: bool = True,
) -> tuple[ClipMeasurements, BinaryIO | None, np.ndarray]:
    """Measure a clip, and encode its FLAC unless it is `unwanted`. A clip that is too long by its header is not decoded.

    The last is its acoustic fingerprint, uint16 (num_words,): empty if there is no FLAC, or it is not to be `fingerprinted`.

    `folder`: where the FLAC of a long clip lies, in a file without a name. `digests`: of the sources that were read, to which
    this clip's is added. Raises OSError if the disk is full.
    """
    path, piece = utterance.audio_path, (utterance.start_s, utterance.end_s)
    try:
        with open_source(path, whole=path not in digests) as source:
            if path not in digests:  # before decoding: a source that changes now is seen next time
                digests[path] = source.digest()
            if rules.policies["too_long"] == "drop":  # hours of sound, perhaps
                header = audio.read_header(source, *piece)
                announced = ClipMeasurements(utterance.key, num_samples=header.num_samples, doubtful=header.doubtful)
                if rules.drops(announced):
                    return announced, None, NO_WORDS
            decoded = audio.decode(source, *piece)
    except audio.BadClipError as error:
        digests.setdefault(path, UNREADABLE)
        return ClipMeasurements(utterance.key, reason=str(error)), None, NO_WORDS
    measures = decoded.clipped, audio.level_db(decoded.samples), "", decoded.doubtful, decoded.out_of_range, decoded.cancelled
    clip = ClipMeasurements(utterance.key, "", len(decoded.samples), *measures)
    if unwanted(clip):
        return replace(clip, sound=audio.samples_hash(decoded.samples)), None, NO_WORDS
    payload = _flac(decoded.samples, folder)
    words = fingerprint(decoded.samples) if fingerprinted else NO_WORDS
    return replace(clip, sound=audio.flac_samples_hash(next(blocks(payload)))), payload, words


def _flac(samples: np.ndarray, folder: Path) -> BinaryIO:
    """Encode a clip's FLAC in memory or, if it is long, on disk."""
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
    """Yield the content of a file in blocks, from its beginning; of one in memory in a single one, without a copy."""
    if isinstance(file, io.BytesIO):
        yield file.getvalue()
        return
    file.seek(0)
    while block := file.read(_AT_ONCE):
        yield block
