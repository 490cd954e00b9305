"""Hindi: misspelt emotions are mended and told, name and folder must agree, and a speaker is a folder or unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import clip

from ser_hpc.corpora import labels
from ser_hpc.corpora.parsers import hindi
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    data = tmp_path / "my Dataset"
    clip(data / "1/session2/happy/1.2.happpy-3.wav")
    clip(data / "8/session5/dusgust/8.5.disgust-10.wav")
    clip(data / "8/session5/sarcastic/take.wav")
    clip(data / "8/session5/sad/8.5.anger-1.wav")
    clip(data / "8/session5/other/8.5.noise-1.wav")
    clip(tmp_path / "3.1.surprise-2.wav")
    return tmp_path


def test_typos_are_mended_and_told(tree: Path) -> None:
    result = hindi.parse(tree)
    assert {u.emotion for u in result.utterances} == {"happy", "disgust", "sarcastic", "surprise"}
    assert "misspelt emotions are mended: dusgust is read as disgust, happpy is read as happy" in result.warnings


def test_the_speaker_is_the_folder_above_the_session_or_unknown(tree: Path) -> None:
    clips = {u.emotion: u for u in hindi.parse(tree).utterances}
    assert (clips["happy"].speaker, clips["happy"].extra) == ("1", {"recording_session": "session2"})
    assert clips["happy"].utterance_id == "1-session2-happy-1-2-happpy-3" and clips["sarcastic"].speaker == "8"
    assert clips["surprise"].speaker == UNKNOWN_SPEAKER
    warnings = hindi.parse(tree).warnings
    assert "1 clip has no speaker's folder: they can only be trained on" in warnings and hindi.LOOSE in warnings
    assert "corpus hindi: 4 clips here, 3,200 in the published corpus" in warnings


def test_a_clip_on_which_name_and_folder_disagree_is_left_out(tree: Path) -> None:
    reasons = {path.name: reason for path, reason in hindi.parse(tree).skipped}
    assert reasons.keys() == {"8.5.anger-1.wav", "8.5.noise-1.wav"}
    assert reasons["8.5.anger-1.wav"].startswith("name and folder disagree: anger, sad")
    assert reasons["8.5.noise-1.wav"].startswith("neither name nor folder says an emotion")


def test_the_label_set_knows_every_emotion() -> None:
    assert set(labels.load_label_set(CONFIGS / "hindi_8.yaml").classes) == set(hindi.SPELLINGS.values())
