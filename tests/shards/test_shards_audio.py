"""Any recording becomes the same 16 kHz sound; what is no whole recording is refused in words."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ser_hpc.shards import RATE, audio


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    """Two partials well below 4 kHz, faded in and out so that a resampler's edges do not count."""
    t = np.arange(round(rate * seconds)) / rate
    fade = np.minimum(1, np.minimum(t, seconds - t) / 0.05)
    return fade * (0.4 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 1700 * t))


def wav_bytes(samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def with_sizes(wav: bytes, riff: int, data: int) -> bytes:
    at = wav.index(b"data")
    return wav[:4] + struct.pack("<I", riff) + wav[8 : at + 4] + struct.pack("<I", data) + wav[at + 8 :]


def reason(path: Path, *segment: float) -> str:
    with pytest.raises(audio.BadClipError) as caught:
        audio.decode(path, *segment)
    return str(caught.value)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_414, 44_100, 48_000, 96_000])
@pytest.mark.parametrize(
    ("channels", "kind"),
    [(1, ("WAV", "PCM_16")), (2, ("WAV", "PCM_24")), (1, ("WAV", "FLOAT")), (3, ("FLAC", "PCM_16")), (1, ("WAVEX", "DOUBLE"))],
)
def test_rate_channels_and_format_do_not_change_the_sound(
    tmp_path: Path, rate: int, channels: int, kind: tuple[str, str]
) -> None:
    path = tmp_path / f"clip.{kind[0].lower()}"
    shares = 2 * np.arange(1, channels + 1) / (channels + 1)  # unequal channels whose mean is the tone
    soundfile.write(path, tone(rate)[:, None] * shares * 0.6, rate, format=kind[0], subtype=kind[1])
    samples = audio.decode(path).samples
    expected = 0.6 * tone(RATE)
    assert samples.dtype == np.int16
    assert abs(len(samples) - len(expected)) <= 1
    length = min(len(samples), len(expected))
    assert np.abs(samples[:length] / 32768 - expected[:length]).max() < 0.005
    assert audio.read_header(path).num_samples == len(samples)


@settings(max_examples=20, deadline=None)
@given(st.integers(1600, 5000), st.integers(0, 2**32 - 1))
def test_16_khz_int16_passes_through_unchanged(tmp_path_factory: pytest.TempPathFactory, length: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    samples = np.random.default_rng(seed).integers(-32768, 32768, length, dtype=np.int16)
    path.write_bytes(wav_bytes(samples))
    decoded = audio.decode(path).samples
    np.testing.assert_array_equal(decoded, samples)
    np.testing.assert_array_equal(audio.decode_flac(audio.encode_flac(decoded)), samples)


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_16", "PCM_24"])
def test_sound_at_full_scale_or_beyond_is_counted_in_the_source(tmp_path: Path, rate: int, subtype: str) -> None:
    """Before resampling and the mean of channels, which round flat tops; what is beyond becomes full scale."""
    path = tmp_path / "loud.wav"
    samples = np.full((rate, 2), 0.25)
    samples[: rate // 50] = (1.5, -0.3)
    soundfile.write(path, samples, rate, subtype=subtype)
    assert audio.decode(path).clipped == pytest.approx(0.01)
    soundfile.write(path, np.full(4000, -2.0), RATE, subtype="FLOAT")
    assert set(audio.decode(path).samples.tolist()) == {-32768}


def test_level_is_that_of_the_sound_not_of_clicks_offsets_or_pauses() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 2.0, 5 * RATE)  # -84 dBFS, and ten more at its peaks
    assert audio.level_db(noise.astype(np.int16)) < -74
    clicks = noise.copy()
    clicks[[100, 20_000, 50_000]] = 32_767
    offset, drifting = noise + 900, noise + np.linspace(-3000, 3000, len(noise))
    for quiet in (clicks, offset, drifting):
        assert audio.level_db(quiet.astype(np.int16)) < -68
    word = noise.copy()
    word[30_000:32_000] += 300 * np.sin(np.arange(2000) / 10)  # 125 ms at -41 dBFS
    assert -42 < audio.level_db(word.astype(np.int16)) < -40
    assert audio.level_db(np.zeros(50, np.int16)) == audio.level_db(np.full(9999, 77, np.int16)) == -140.0
    assert audio.level_db((32_767 * np.sign(np.sin(np.arange(RATE)))).astype(np.int16)) == pytest.approx(0, abs=0.1)


def test_segment_is_the_same_as_cutting_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(RATE, 2.0), RATE)
    whole = audio.decode(path).samples
    np.testing.assert_array_equal(audio.decode(path, 0.5, 1.25).samples, whole[8_000:20_000])
    np.testing.assert_array_equal(audio.decode(path, 1.5, None).samples, whole[24_000:])
    np.testing.assert_array_equal(audio.decode(path, None, 2.005).samples, whole)  # an end rounded up


@pytest.mark.parametrize("segment", [(0.5, 2.2), (-0.1, 1.0), (1.0, 1.0), (1.5, 0.5), (2.5, 3.0)])
def test_segment_outside_the_recording_is_refused(tmp_path: Path, segment: tuple[float, float]) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(RATE, 2.0), RATE)
    assert "outside the recording of 2.00 s" in reason(path, *segment)


@pytest.mark.parametrize("sizes", [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0), (0x7FFFF024, 0x7FFFF000)])
def test_streamed_wav_is_read_to_its_end(tmp_path: Path, sizes: tuple[int, int]) -> None:
    path = tmp_path / "streamed.wav"
    samples = (tone(RATE) * 20_000).astype(np.int16)
    path.write_bytes(with_sizes(wav_bytes(samples), *sizes))
    np.testing.assert_array_equal(audio.decode(path).samples, samples)


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.02])
def test_truncated_wav_is_refused_by_its_header(tmp_path: Path, keep: float) -> None:
    """libsndfile reads what is left of it without a word."""
    path = tmp_path / "cut.wav"
    whole = wav_bytes((tone(RATE) * 20_000).astype(np.int16))
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(audio.BadClipError, match="truncated"):
        audio.read_header(path)


def test_truncated_flac_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    payload = audio.encode_flac(np.random.default_rng(0).integers(-9000, 9000, 32_000, dtype=np.int16))
    path.write_bytes(payload[: len(payload) // 2])
    assert reason(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"speaker,emotion\nanna,happy\n", "is a text file"),
        (b"<!DOCTYPE html><html>", "is a text file"),
        ("Gefühl und Größe, schön geschrieben".encode(), "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git-lfs pointer"),
        (b"\x00\x01\x02\x03" * 500, "cannot be decoded"),
        (b"RIFF\x24\x00\x00\x00WAVE", "truncated"),
        (b"RF64\xff\xff\xff\xffWAVEds64\x1c\x00\x00\x00\x00", "cannot be decoded"),
        (wav_bytes(np.zeros(0, np.int16)), "0 frames"),
        (wav_bytes(np.zeros(1, np.int16), 96_000), "holds no sound"),
    ],
)
def test_what_is_no_recording_is_refused_by_its_header(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    with pytest.raises(audio.BadClipError, match=words):
        audio.read_header(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_samples_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "clip.wav"
    samples = np.zeros(4000)
    samples[7] = value
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    assert "NaN or infinite" in reason(path)


def test_an_audio_header_written_as_text_is_no_text_file(tmp_path: Path) -> None:
    """NIST SPHERE, as in older corpora, begins with 1,024 bytes of text."""
    soundfile.write(tmp_path / "clip.wav", tone(RATE), RATE, format="NIST", subtype="PCM_16")
    assert (tmp_path / "clip.wav").read_bytes().startswith(b"NIST_1A\n")
    assert len(audio.decode(tmp_path / "clip.wav").samples) == 8000


def test_missing_file_folder_and_dangling_link_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "link.wav").symlink_to(tmp_path / "nowhere.wav")
    assert reason(tmp_path / "no.wav") == "does not exist"
    assert "link to a file that is not there" in reason(tmp_path / "link.wav")
    assert "cannot be read" in reason(tmp_path)


def test_sound_hash_tells_sounds_apart_and_files_not(tmp_path: Path) -> None:
    samples = (tone(RATE) * 20_000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    soundfile.write(tmp_path / "b.flac", samples, RATE)
    hashes = [audio.samples_hash(audio.decode(tmp_path / name).samples) for name in ("a.wav", "b.flac")]
    assert hashes[0] == hashes[1]
    samples[100] += 1
    assert audio.samples_hash(samples) != hashes[0]
