"""Cut at pauses: every sound is heard once, in stretches of the lengths that were asked for, and no word is cut in two."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.made import fine_tuned
from inference.test_predict import lines_of, run_command
from small import REAL_SPEECH

import ser_hpc
from ser_hpc.core.errors import UserError
from ser_hpc.inference.pauses import Pauses
from ser_hpc.inference.recordings import ArrayRecording, FileRecording
from ser_hpc.inference.windows import Clip
from ser_hpc.shards import RATE
from ser_hpc.shards.audio import BadClipError

RNG = np.random.default_rng(0)


def noise(seconds: float, loudness: float) -> np.ndarray:
    return (RNG.standard_normal(round(seconds * RATE)) * loudness).astype(np.int16)


def cut(*parts: np.ndarray, pauses: Pauses | None = None) -> list[tuple[float, float]]:
    clips = (pauses or Pauses()).clips(ArrayRecording("a", np.concatenate(parts)))
    return [(round(clip.start_s, 2), round(clip.end_s, 2)) for clip in clips]


def test_speech_between_pauses_is_found_with_its_times() -> None:
    """Whatever the noise behind it, if it is 20 dB below; a short gap, as before a stop, is no pause."""
    for background in (0.0, 3.0, 100.0):
        quiet = noise(2, background)
        word = np.concatenate([noise(0.8, 3000), noise(0.12, background), noise(0.8, 3000)])
        found = cut(quiet, word, quiet, word, quiet)
        assert [time for times in found for time in times] == pytest.approx([1.9, 3.82, 5.62, 7.54], abs=0.1), background


def test_a_level_that_trembles_between_the_thresholds_cuts_nothing() -> None:
    trembling = np.concatenate([noise(0.2, 3000 if number % 2 else 60) for number in range(20)])
    assert len(cut(noise(2, 3), trembling, noise(2, 3))) == 1


def test_short_ones_are_joined_or_given_silence_and_long_ones_cut_where_they_are_quiet() -> None:
    yes = noise(0.4, 3000)
    assert len(cut(noise(2, 3), yes, noise(0.5, 3), yes, noise(2, 3))) == 1, "near each other"
    far = cut(noise(3, 3), yes, noise(5, 3), yes)
    assert [round(end - start, 1) for start, end in far] == [1.0, 1.0] and far[0][0] < 3 < 3.4 < far[0][1]
    long = np.concatenate([noise(7, 3000), noise(0.1, 900), noise(8, 3000)])
    first, second = cut(noise(2, 3), long, noise(2, 3))
    assert first[1] == second[0] == pytest.approx(9.05, abs=0.06)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 12), st.sampled_from([0.0, 3.0, 300.0, 5000.0])), min_size=1, max_size=8),
    st.floats(0.2, 3),
    st.floats(6, 12),
)
def test_lengths_are_kept_and_nothing_is_heard_twice(parts: list[tuple[float, float]], least: float, most: float) -> None:
    samples = np.concatenate([noise(*part) for part in parts])
    if not len(samples):
        return
    clips = list(Pauses(least, most).clips(ArrayRecording("a", samples)))
    assert clips and all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(clips))
    whole = len(samples) / RATE
    for clip in clips:
        assert clip.end_s - clip.start_s <= most + 0.021 and clip.end_s <= whole + 1e-9
        begin = round(clip.start_s * RATE)
        np.testing.assert_array_equal(clip.samples, samples[begin : begin + len(clip.samples)])
    heard = np.zeros(len(samples), bool)
    for clip in clips:
        heard[round(clip.start_s * RATE) :][: len(clip.samples)] = True
    loud = np.abs(samples.astype(int)) > 4000
    assert heard[loud].mean() > 0.9 if loud.sum() > RATE / 2 else True


def test_silence_and_one_tone_are_cut_by_length_alone() -> None:
    assert [round(end - start) for start, end in cut(np.zeros(25 * RATE, np.int16))] == [5, 5, 5, 10]
    assert cut(np.zeros(100, np.int16)) == [(0.0, 0.01)]
    with pytest.raises(BadClipError, match="holds no sound"):
        cut(np.zeros(0, np.int16))


@pytest.mark.skipif(not REAL_SPEECH.exists(), reason="no copy of Emo-DB here")
def test_sentences_of_real_speech_are_told_apart() -> None:
    sentences = [soundfile.read(path, dtype="int16")[0] for path in sorted((REAL_SPEECH).rglob("*.wav"))[:40:8]]
    pause = noise(1.5, 5)
    found = cut(pause, *(part for sentence in sentences for part in (sentence, pause)), pauses=Pauses(0.5, 10))
    starts, at = [], 1.5
    for sentence in sentences:
        starts.append((at, at + len(sentence) / RATE))
        at += len(sentence) / RATE + 1.5
    for start, end in found:
        assert any(a - 0.3 <= start and end <= b + 0.3 for a, b in starts), "no stretch is of two sentences"
    assert all(any(a - 0.3 <= start <= b for start, _ in found) for a, b in starts)


class Endless:
    """Hours of speech and pauses, made as they are read."""

    name, start_s = "endless", 0.0

    def blocks(self) -> Iterator[np.ndarray]:
        speech = np.concatenate([noise(3, 3000), noise(1, 3)])
        for _ in range(10 * 3600 // 4):
            yield speech


def test_ten_hours_take_little_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(1 for _ in Pauses().clips(Endless()))
    assert count == 9000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KB"


def test_what_lies_before_a_damage_is_predicted(tmp_path: Path) -> None:
    class Damaged(Endless):
        def blocks(self) -> Iterator[np.ndarray]:
            yield np.concatenate([noise(1, 3), noise(2, 3000), noise(1.005, 3)])
            raise BadClipError("is damaged")

    found: list[Clip] = []
    with pytest.raises(BadClipError, match="is damaged"):
        found.extend(Pauses().clips(Damaged()))
    # `extend` keeps what came before the exception
    assert len(found) == 1
    with pytest.raises(BadClipError, match="does not exist"):
        list(Pauses().clips(FileRecording("no", tmp_path / "no.wav")))


def test_the_command_and_python(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fine_tuned(base).path
    sound = np.concatenate([noise(1, 3), noise(2, 3000), noise(1, 3), noise(2, 3000)])
    soundfile.write(tmp_path / "talk.wav", sound, RATE)
    arguments = (run, tmp_path / "talk.wav", "--fold", 0, "--format", "jsonl", "--split-at-pauses")
    assert run_command(*arguments, "--min-seconds", 0.5) == 0
    lines = lines_of(capsys.readouterr().out)
    assert [line["start_s"] for line in lines] == pytest.approx([0.9, 3.9], abs=0.1)
    found = ser_hpc.load(run, fold=0).predict(tmp_path / "talk.wav", pauses=Pauses(0.5, 10))
    assert [json.loads(json.dumps(each.as_json())) for each in found] == lines
    for words, more in {
        "two ways": ("--window", 4),
        "half of the longest": ("--min-seconds", 4, "--max-seconds", 5),
        "300 s at most": ("--max-seconds", 400),
        "give 0.1 s": ("--min-seconds", 0),
    }.items():
        assert run_command(*arguments, *more) == 2
        assert words in capsys.readouterr().err
    assert run_command(*arguments[:-1], "--min-seconds", 1) == 2
    with pytest.raises(UserError, match="two ways"):
        ser_hpc.load(run, fold=0).predict(sound, window_s=1, pauses=Pauses())


def test_a_table_with_a_byte_order_mark_is_read(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "talk.wav", noise(1, 3000), RATE)
    for name, text in (("a.jsonl", '{"audio": "talk.wav"}\n'), ("a.csv", "audio\ntalk.wav\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert run_command(fine_tuned(base).path, tmp_path / name, "--fold", 0, "--format", "jsonl") == 0
        assert len(lines_of(capsys.readouterr().out)) == 1
