"""Channels become one, and floats integers, without losing the sound: what stands in the way is mended and told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from odd_sounds import as_int16, speech

from ser_hpc.shards import audio

RATES = [16_000, 48_000]


def floats(path: Path, samples: np.ndarray, rate: int, subtype: str = "FLOAT") -> audio.DecodedClip:
    soundfile.write(path, samples, rate, subtype=subtype, format="WAV")
    return audio.decode(path)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("spike", [9.0, -3e4, 1e29, 3e38])
def test_a_lone_spike_stays_one(tmp_path: Path, spike: float, rate: int, subtype: str) -> None:
    """It is a click of full scale, not hundreds of samples of it, and a finding."""
    sound = speech(1.0, rate)
    right = floats(tmp_path / "right.wav", sound, rate, subtype)
    sound[rate // 2] = spike
    clip = floats(tmp_path / "clip.wav", sound, rate, subtype)
    assert f"1 of {rate:,} float samples are far out of [-1, 1]" in clip.out_of_range
    assert right.out_of_range == ""
    wrong = np.abs(clip.samples.astype(int) - right.samples)
    assert np.count_nonzero(wrong > 1000) < 20
    assert np.count_nonzero(wrong > 2) < 600


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("spikes", [0, 3])
def test_integers_as_floats_are_scaled(tmp_path: Path, bits: int, rate: int, spikes: int) -> None:
    sound = 0.9 * speech(1.0, rate)
    right = floats(tmp_path / "right.wav", sound, rate)
    sound = sound * 2.0 ** (bits - 1)
    sound[100 : 100 + spikes] = 1e30
    clip = floats(tmp_path / "clip.wav", sound, rate)
    assert f"read as {bits}-bit integers" in clip.out_of_range
    differs = np.abs(clip.samples.astype(int) - right.samples)
    assert differs[500 * (spikes > 0) :].max() <= 1
    assert clip.clipped < 0.01


def test_floats_a_little_over_full_scale_are_clipped_and_no_more(tmp_path: Path) -> None:
    clip = floats(tmp_path / "clip.wav", 10 * speech(1.0), 16_000)
    assert clip.out_of_range == "" and clip.clipped > 0.01


def test_floats_of_no_scale_are_refused(tmp_path: Path) -> None:
    with pytest.raises(audio.BadClipError, match="nothing in it is in"):
        floats(tmp_path / "clip.wav", 1e12 * speech(1.0), 16_000)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
@pytest.mark.parametrize("hum", [0.0, 0.02])
def test_of_channels_in_opposite_phase_the_louder_is_taken(tmp_path: Path, rate: int, subtype: str, hum: float) -> None:
    sound = speech(1.0, rate)
    noise = hum * np.sin(np.arange(rate) * 2 * np.pi * 50 / rate)
    clip = floats(tmp_path / "clip.wav", np.stack([noise - 0.9 * sound, noise + sound], axis=1), rate, subtype)
    alone = floats(tmp_path / "alone.wav", noise + sound, rate, subtype)
    np.testing.assert_array_equal(clip.samples, alone.samples)
    assert "the mean of its 2 channels has" in clip.cancelled and "channel 2, which alone is taken" in clip.cancelled


def test_opposite_phase_is_found_under_an_offset_and_a_spike(tmp_path: Path) -> None:
    sound = speech(1.0)
    both = np.stack([sound + 0.2, 0.2 - sound], axis=1)
    both[700, 0] = 1e30
    clip = floats(tmp_path / "clip.wav", both, 16_000)
    assert "channel 1" in clip.cancelled and clip.out_of_range
    assert np.abs(clip.samples[800:].astype(int) - as_int16(sound + 0.2)[800:]).max() <= 1


@pytest.mark.parametrize("channels", [(1, 1), (1, 0), (1, 0.5), (1, -0.3), (1, 0, 0), (0, 0)])
def test_other_channels_are_averaged_as_ever(tmp_path: Path, channels: tuple[float, ...]) -> None:
    both = as_int16(speech(0.5)[:, None] * np.array(channels))
    soundfile.write(tmp_path / "clip.wav", both, 16_000)
    clip = audio.decode(tmp_path / "clip.wav")
    np.testing.assert_array_equal(clip.samples, np.rint(both.mean(axis=1, dtype=np.float32)).astype(np.int16))
    assert clip.cancelled == ""


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_blocks_change_no_sample(
    tmp_path: Path, rate: int, channels: int, subtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.wav"
    sound = np.stack([speech(3.0, rate, seed) for seed in range(channels)], axis=1)
    soundfile.write(path, sound, rate, subtype=subtype)
    whole, piece = audio.decode(path), audio.decode(path, 0.7, 2.1)
    monkeypatch.setattr("ser_hpc.shards.recording._BLOCK", 10_001)
    for expected, got in ((whole, audio.decode(path)), (piece, audio.decode(path, 0.7, 2.1))):
        np.testing.assert_array_equal(got.samples, expected.samples)
        assert got.clipped == expected.clipped
