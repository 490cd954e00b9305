"""UrduSER: the folder says the emotion, the name the actor; what they do not say is told and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import clip

from ser_hpc.corpora import labels
from ser_hpc.corpora.parsers import urduser
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    clip(tmp_path / "UrduSER/1. Angry (x)/1_0_1_01.wav", rate=41100, subtype="FLOAT")
    clip(tmp_path / "UrduSER/BOREDOM/10_1_3_07.wav", rate=44100, subtype="FLOAT")
    clip(tmp_path / "UrduSER/Sad/take 7.wav", rate=44100)
    clip(tmp_path / "UrduSER/Sad/1_0_1_02.wav", rate=44100)
    clip(tmp_path / "readme.wav")
    return tmp_path


def test_actor_gender_and_emotion(tree: Path) -> None:
    boredom, angry, sad = sorted(urduser.parse(tree).utterances, key=lambda u: (u.emotion != "boredom", u.emotion))
    assert (angry.emotion, angry.speaker, angry.gender, angry.utterance_id) == ("angry", "actor1", "male", "angry-1_0_1_01")
    assert (boredom.emotion, boredom.speaker, boredom.gender) == ("boredom", "actor10", "female")
    assert (sad.speaker, sad.gender, sad.utterance_id) == (UNKNOWN_SPEAKER, "", "sad-take-7")


def test_disagreement_and_a_clip_without_folder_are_left_out(tree: Path) -> None:
    reasons = {path.name: reason for path, reason in urduser.parse(tree).skipped}
    assert reasons["1_0_1_02.wav"] == "the name says angry, the folder Sad"
    assert reasons["readme.wav"].startswith("is below no folder of an emotion") and len(reasons) == 2


def test_what_nobody_could_confirm_is_told(tree: Path) -> None:
    warnings = urduser.parse(tree).warnings
    assert any(text.startswith("1 names do not say who speaks") for text in warnings)
    assert "2 speakers here, 10 in the published corpus" in warnings and urduser.LOOSE in warnings


def test_the_label_set_knows_every_emotion() -> None:
    assert set(labels.load_label_set(CONFIGS / "urduser_7.yaml").classes) == set(urduser.EMOTIONS)
