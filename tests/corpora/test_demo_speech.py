"""The demo corpus is honest: no cue alone tells its emotions, a few together do, and shuffled labels tell nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import demo_speech
from ser_hpc.corpora.parse_result import ParseResult

RATE_HZ = 16_000
CUES = ("pitch", "level", "tempo", "tilt", "seconds")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ParseResult:
    return demo_speech.make_demo_corpus(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def cues(corpus: ParseResult) -> dict[str, np.ndarray]:
    """What can be measured from the wavs alone, each (num_clips,)."""
    sounds = [soundfile.read(u.audio_path)[0] for u in corpus.utterances]
    measures = (mean_pitch, level_db, syllable_rate, spectral_tilt, len)
    return {cue: np.array([measure(s) for s in sounds]) for cue, measure in zip(CUES, measures, strict=True)}


def mean_pitch(sound: np.ndarray) -> float:
    """Log2 of the median pitch over the louder frames, by autocorrelation."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 1024)[::512]
    loud = frames[np.square(frames).mean(1) > 0.3 * np.square(frames).mean()]
    spectra = np.abs(np.fft.rfft(loud * np.hanning(1024), 2048)) ** 2
    correlation = np.fft.irfft(spectra)[:, : RATE_HZ // 70]
    correlation[:, : RATE_HZ // 400] = -np.inf
    return float(np.log2(np.median(RATE_HZ / correlation.argmax(1))))


def level_db(sound: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(sound**2)))


def syllable_rate(sound: np.ndarray) -> float:
    """Peaks of the smoothed loudness a second, weighed by its spectrum between 2 and 9 Hz."""
    energy = np.square(sound[: len(sound) // 160 * 160]).reshape(-1, 160).mean(1)
    envelope = np.sqrt(energy) - np.sqrt(energy).mean()
    power = np.abs(np.fft.rfft(envelope * np.hanning(len(envelope)), 2048)) ** 2
    rates = np.fft.rfftfreq(2048, 0.01)
    band = (rates > 2) & (rates < 9)
    return float(np.log2(rates[band][power[band].argmax()]))


def spectral_tilt(sound: np.ndarray) -> float:
    """Level above 1.5 kHz against that below, in dB."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    split = int(1500 * len(sound) / RATE_HZ)
    return float(10 * np.log10(power[split:].sum() / power[:split].sum()))


def uar(model: object, features: np.ndarray, emotions: np.ndarray, sessions: np.ndarray) -> float:
    """Unweighted average recall of predictions made leave-one-session-out."""
    predicted = cross_val_predict(
        make_pipeline(StandardScaler(), model), features, emotions, groups=sessions, cv=LeaveOneGroupOut()
    )
    return float(recall_score(emotions, predicted, average="macro"))


def labels(corpus: ParseResult) -> tuple[np.ndarray, np.ndarray]:
    return np.array([u.emotion for u in corpus.utterances]), np.array([u.session for u in corpus.utterances])


@pytest.mark.parametrize("cue", CUES)
def test_no_cue_alone_tells_the_emotions(corpus: ParseResult, cues: dict[str, np.ndarray], cue: str) -> None:
    models = (LogisticRegression(), DecisionTreeClassifier(max_depth=4, random_state=0), KNeighborsClassifier(15), SVC())
    best = max(uar(model, cues[cue][:, None], *labels(corpus)) for model in models)
    print(f"{cue}: {best:.3f}")
    assert best < 0.6


def test_pitch_contour_and_level_together_are_not_enough_for_all_four(corpus: ParseResult, cues: dict[str, np.ndarray]) -> None:
    """Arousal alone separates angry and happy from neutral and sad, never within: a network must also hear voice or tempo."""
    features = np.stack([cues["pitch"], cues["level"], cues["seconds"]], 1)
    score = uar(RandomForestClassifier(50, random_state=0), features, *labels(corpus))
    print(f"pitch, level, seconds: {score:.3f}")
    assert score < 0.65


def test_four_simple_cues_together_tell_the_emotions_of_unseen_speakers(
    corpus: ParseResult, cues: dict[str, np.ndarray]
) -> None:
    features = np.stack([cues[cue] for cue in CUES[:4]], 1)
    score = uar(SVC(), features, *labels(corpus))
    print(f"pitch, level, tempo, tilt: {score:.3f}")
    assert score > 0.85


def test_shuffled_labels_fall_to_chance(corpus: ParseResult, cues: dict[str, np.ndarray]) -> None:
    features = np.stack([cues[cue] for cue in CUES[:4]], 1)
    emotions, sessions = labels(corpus)
    scores = [uar(SVC(), features, np.random.default_rng(seed).permutation(emotions), sessions) for seed in range(5)]
    print(f"shuffled: {np.mean(scores):.3f}")
    assert abs(np.mean(scores) - 0.25) < 0.05


def test_speakers_differ_more_in_pitch_than_emotions_do(corpus: ParseResult, cues: dict[str, np.ndarray]) -> None:
    emotions, _ = labels(corpus)
    speakers = np.array([u.speaker for u in corpus.utterances])
    by_speaker, by_emotion = (
        np.ptp([np.median(cues["pitch"][names == name]) for name in np.unique(names)]) for names in (speakers, emotions)
    )
    assert by_speaker > 2 * by_emotion


def test_ten_speakers_in_five_sessions_and_lengths_that_vary(corpus: ParseResult) -> None:
    sessions = {(u.session, u.gender, u.speaker) for u in corpus.utterances}
    assert len(corpus.utterances) == 400 and len(sessions) == 10
    assert (
        len({session for session, _, _ in sessions}) == 5 and len({(session, gender) for session, gender, _ in sessions}) == 10
    )
    infos = [soundfile.info(u.audio_path) for u in corpus.utterances]
    assert all(info.samplerate == RATE_HZ and info.channels == 1 and 0.79 < info.duration <= 1.8 for info in infos)
    assert len({info.frames for info in infos}) > 300


def read_all(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "wav").iterdir())}


def test_same_seed_same_bytes_another_seed_other_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo_speech.make_demo_corpus(tmp_path / name, clips_per_speaker_and_emotion=1, seed=seed)
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")
    first, other = read_all(tmp_path / "a"), read_all(tmp_path / "c")
    assert first.keys() == other.keys() and all(first[name] != other[name] for name in first)


def test_an_interrupted_making_is_refused_by_parse_and_finished_by_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker is written last: what a killed process left is never taken for the corpus."""
    demo_speech.make_demo_corpus(tmp_path / "whole", 1)
    write, written = demo_speech._write_wav, []

    def killed_at_the_eighth(path: Path, samples: np.ndarray) -> None:
        written.append(path)
        if len(written) == 8:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, samples)

    monkeypatch.setattr(demo_speech, "_write_wav", killed_at_the_eighth)
    with pytest.raises(KeyboardInterrupt):
        demo_speech.make_demo_corpus(tmp_path / "killed", 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="not a complete demo corpus"):
        demo_speech.parse(tmp_path / "killed")
    assert demo_speech.make_demo_corpus(tmp_path / "killed", 1).skipped == ()
    assert read_all(tmp_path / "killed") == read_all(tmp_path / "whole")


def test_a_truncated_clip_is_noticed_and_made_again(tmp_path: Path) -> None:
    clip = demo_speech.make_demo_corpus(tmp_path, 1).utterances[5].audio_path
    whole = clip.read_bytes()
    clip.write_bytes(whole[:1000])
    with pytest.raises(UserError, match="files have changed"):
        demo_speech.parse(tmp_path)
    demo_speech.make_demo_corpus(tmp_path, 1)
    assert clip.read_bytes() == whole


def test_what_is_complete_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = demo_speech.make_demo_corpus(tmp_path, 1)
    monkeypatch.setattr(demo_speech, "_speak", lambda *_: pytest.fail("made again"))
    assert demo_speech.make_demo_corpus(tmp_path, 1) == made


def test_fewer_clips_than_before_leave_the_others_listed_as_skipped(tmp_path: Path) -> None:
    demo_speech.make_demo_corpus(tmp_path, 2)
    fewer = demo_speech.make_demo_corpus(tmp_path, 1)
    assert len(fewer.utterances) == 40 and len(fewer.skipped) == 40


def test_a_number_of_clips_out_of_range_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 to 100"):
        demo_speech.make_demo_corpus(tmp_path / "none", 0)
    assert not (tmp_path / "none").exists()
