"""What is measured of a clip without listening: digital zeros are no silence, and no clip is too odd to be measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import packed_tones

from ser_hpc.shards import shortcut_table
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ShardReader
from ser_hpc.shards.shortcut_features import COLUMNS, WIDTH, find_digital_zeros, measure_clip
from ser_hpc.shards.shortcut_table import measure_clips

FREE_OF_ZEROS = ("level", "noise floor", "silence at edges", "long-term spectrum")


def speech(seed: int, seconds: float = 1.0, level: float = 2000.0) -> np.ndarray:
    """Bursts of noise over fainter noise, without two equal samples in a row for long."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    bursts = np.where(np.sin(2 * np.pi * 3 * time) > 0, 1.0, 0.02)
    return (level * bursts * rng.standard_normal(len(time))).astype(np.int16)


def of(row: np.ndarray, name: str) -> np.ndarray:
    return row[COLUMNS[name]]


@given(st.integers(0, 3), st.integers(80, 40_000))
def test_zeros_behind_a_clip_change_nothing_but_its_length(seed: int, zeros: int) -> None:
    """Emo-DB is often cut or zero-filled to two seconds: that is no quieter room, and no longer pause."""
    clip = speech(seed)
    before, after = measure_clip(clip), measure_clip(np.pad(clip, (0, zeros)))
    for name in FREE_OF_ZEROS:
        np.testing.assert_allclose(of(after, name), of(before, name), atol=1e-9, err_msg=name)
    assert of(after, "digital zeros")[1] == pytest.approx(zeros / 16_000, abs=0.006)
    assert of(after, "duration") == pytest.approx((len(clip) + zeros) / 16_000)


def test_zeros_before_a_clip_are_told_from_silence() -> None:
    clip, pause = speech(0), (3 * np.random.default_rng(1).standard_normal(4800)).round().astype(np.int16)
    zeros, silence = measure_clip(np.pad(clip, (4800, 0))), measure_clip(np.concatenate([pause, clip]))
    assert of(zeros, "silence at edges")[0] < 0.02 and of(zeros, "digital zeros")[0] == pytest.approx(0.3, abs=1e-3)
    assert of(silence, "silence at edges")[0] == pytest.approx(0.3, abs=0.02) and of(silence, "digital zeros")[0] == 0
    assert of(silence, "noise floor")[-1] < of(zeros, "noise floor")[-1] - 20


def test_louder_is_a_level_and_no_other_spectrum() -> None:
    clip = speech(2)
    quiet, loud = measure_clip(clip), measure_clip(clip * 4)
    np.testing.assert_allclose(of(loud, "level") - of(quiet, "level"), 20 * np.log10(4), atol=1e-3)
    np.testing.assert_allclose(of(loud, "long-term spectrum"), of(quiet, "long-term spectrum"), atol=1e-6)
    assert of(loud, "noise floor")[-1] - of(quiet, "noise floor")[-1] == pytest.approx(20 * np.log10(4), abs=0.01)


@given(st.lists(st.sampled_from([0, 0, 0, 5, 5, -32768, 32767]), min_size=1, max_size=400), st.integers(1, 40))
def test_digital_zeros_are_stretches_of_one_value(values: list[int], each: int) -> None:
    samples = np.repeat(np.array(values, dtype=np.int16), each)
    expected, start = np.zeros(len(samples), dtype=bool), 0
    for i in range(1, len(samples) + 1):
        if i == len(samples) or samples[i] != samples[start]:
            expected[start:i] = i - start >= 80
            start = i
    np.testing.assert_array_equal(find_digital_zeros(samples), expected)
    assert measure_clip(samples).shape == (WIDTH,)


def test_a_clip_of_nothing_has_no_noise_floor_but_a_length() -> None:
    row = measure_clip(np.zeros(16_000, dtype=np.int16))
    assert of(row, "duration") == 1.0 and of(row, "digital zeros").tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(of(row, "noise floor")).all() and np.isnan(of(row, "level")).all()


class Here:
    """A folder for one file, which counts how often it is written."""

    def __init__(self, folder):  # type: ignore[no-untyped-def]
        self.folder, self.written = folder, 0

    def find(self, name: str):  # type: ignore[no-untyped-def]
        return [path for path in [self.folder / name] if path.exists()]

    def write(self, name: str, write):  # type: ignore[no-untyped-def]
        self.written += 1
        write(self.folder / name)
        return self.folder / name


def test_each_clip_is_measured_once_whatever_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another label set, another part: only what is new; a damaged or forged file is measured anew, and never trusted."""
    index = ShardIndex.load(packed_tones(tmp_path_factory.mktemp("tones"), 3, 2))
    here, every = Here(tmp_path_factory.mktemp("here")), np.arange(len(index.metadata))
    with ShardReader(index) as reader:
        expected = np.stack([measure_clip(reader.read(int(position))) for position in every])
    asked: list[int] = []
    measure = shortcut_table._measure
    monkeypatch.setattr(shortcut_table, "_measure", lambda index, some: asked.extend(some.tolist()) or measure(index, some))
    for some in (every[::3], every[::2], every):
        np.testing.assert_array_equal(measure_clips(index, some, lambda number: here), expected[some])
    assert sorted(asked) == every.tolist() and here.written == 3
    (file,) = here.folder.iterdir()
    whole, header = file.read_bytes(), len(file.read_bytes()) - expected.shape[0] * (WIDTH + 1) * 8
    huge = whole[:header].replace(b"36", b"99") + whole[header:]
    unended, odd = whole.replace(b"(", b"[", 1), whole.replace(b"'descr'", b"[]     ", 1)  # for a parser of Python's
    assert unended != whole != odd
    for content in (b"", whole[:-8], huge, unended, odd, b"PK\x03\x04" + whole, np.full(len(whole), 255, np.uint8).tobytes()):
        file.write_bytes(content)
        np.testing.assert_array_equal(measure_clips(index, every, lambda number: here), expected)
        assert file.read_bytes() == whole
