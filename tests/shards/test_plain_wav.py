"""Plain 16-bit WAV files are read without libsndfile: the same samples as by it, and nothing that is not wholly plain."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from odd_sounds import wav

from ser_hpc.shards import audio, encode, source
from ser_hpc.shards.plain_wav import PlainWav
from ser_hpc.shards.quality import QualityRules
from ser_hpc.shards.source import SourceFile, digest_of, open_source

SOUND = np.random.default_rng(0).integers(-30_000, 30_000, (3001, 2), np.int16)


def opened(path: Path) -> PlainWav | None:
    with open_source(path, whole=True) as file:
        return PlainWav.of(file, path.read_bytes()[:4096])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_same_samples_as_by_libsndfile(tmp_path: Path, channels: int, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, SOUND[:, :channels], rate, subtype="PCM_16")
    assert opened(path) is not None
    ours = [audio.decode(path), audio.decode(path, 0.02, 0.05)], audio.read_header(path)
    monkeypatch.setattr(PlainWav, "of", lambda file, head: None)
    theirs = [audio.decode(path), audio.decode(path, 0.02, 0.05)], audio.read_header(path)
    assert ours[1] == theirs[1]
    for mine, its in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_array_equal(mine.samples, its.samples)
        assert (mine.clipped, mine.doubtful, mine.cancelled) == (its.clipped, its.doubtful, its.cancelled)


def test_any_other_header_is_left_to_libsndfile(tmp_path: Path) -> None:
    """Of each byte of the header that says anything, another value makes the file no plain one."""
    path, whole = tmp_path / "clip.wav", wav(SOUND, rate=16_000)
    path.write_bytes(whole)
    assert opened(path) is not None
    for at in range(44):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert opened(path) is None, at
    for other in (whole[:-1], whole[:-4], whole + b"\0", whole[:43], whole + b"LIST\4\0\0\0abcd"):
        path.write_bytes(other)
        assert opened(path) is None


def test_packing_opens_a_source_once_and_reads_it_once(tmp_path: Path, make_corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    utterance = make_corpus(sessions=1, clips=1)[0]
    asked: list[str] = []
    monkeypatch.setattr(source.os, "open", lambda path, *flags, real=os.open: asked.append("open") or real(path, *flags))
    monkeypatch.setattr(source.os, "pread", lambda *what, real=os.pread: asked.append("pread") or real(*what))
    digests: dict[Path, str] = {}
    rules = QualityRules.parse(["too_long=drop"])  # the header is looked at before, too
    clip, _, _ = encode.encode_clip(utterance, rules, rules.drops, tmp_path, digests)
    monkeypatch.undo()
    assert clip.sound and asked == ["open", "pread"]
    assert digests == {utterance.audio_path: digest_of(utterance.audio_path)}


def test_a_long_source_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(SOUND, rate=16_000))
    with open_source(path, whole=True) as short:
        assert short.content is not None
    monkeypatch.setattr(source, "_SHORT", 1000)
    with open_source(path, whole=True) as long:
        assert long.content is None and long == SourceFile(-1, short.version)
        assert long.digest() == digest_of(path)
