"""MSP-IMPROV: labels meet recordings under another name, activation is turned round, and only set sentences share a text."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import clip, macos_note

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parsers import msp_improv

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"
LABELS = """UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:1.500000; V:3.250000; D:2.000000 ; N:4.000000;
WORKER00000017; Neutral; Caf\xe9; A:2.0; V:3.0; D:2.0; N:4.0;

UTD-IMPROV-S20H-M06-R-MF03.avi; X; A:3.000000; V:4.000000; D:NaN ; N:NaN;
UTD-IMPROV-S02S-F01-S-FM99.avi; S; A:3.000000; V:2.000000; D:3.000000 ; N:3.000000;
UTD-IMPROV-S02S-F09-S-FM99.avi; S; A:3.000000; V:2.000000; D:3.000000 ; N:3.000000;
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    clip(tmp_path / "session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.wav", rate=44100)
    macos_note(tmp_path / "session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.wav")
    clip(tmp_path / "session6/S20H/R/MSP-IMPROV-S20H-M06-R-MF03.wav", rate=44100)
    clip(tmp_path / "session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM02.wav", rate=44100)
    (tmp_path / "Evalution.txt").write_text(LABELS, encoding="latin-1")
    return tmp_path


def test_speaker_session_scenario_and_text_are_read_from_the_name(tree: Path) -> None:
    natural, read = msp_improv.parse(tree).utterances
    assert (natural.speaker, natural.session, natural.gender, natural.text_id) == ("F01", "session1", "female", "")
    assert (read.speaker, read.session, read.gender, read.text_id) == ("M06", "session6", "male", "S20")
    assert natural.extra == {"scenario": "P", "intended_emotion": "angry", "sentence": "01", "naturalness": "4"}


def test_the_label_is_the_consensus_not_the_emotion_in_the_name(tree: Path) -> None:
    assert [clip.emotion for clip in msp_improv.parse(tree).utterances] == ["neutral", "no_agreement"]


def test_activation_is_turned_round_and_nan_is_not_annotated(tree: Path) -> None:
    """The release rates activation from 1 (very active) to 5 (very calm)."""
    natural, read = msp_improv.parse(tree).utterances
    assert (natural.arousal, natural.valence, natural.dominance) == (4.5, 3.25, 2.0)
    assert (read.arousal, read.dominance, "naturalness" in read.extra) == (3.0, None, False)


def test_labels_without_sound_and_sound_without_label_are_both_told(tree: Path) -> None:
    reasons = [(path.name, reason) for path, reason in msp_improv.parse(tree).skipped]
    assert ("MSP-IMPROV-S01A-F01-P-FM02.wav", "has no label") in reasons
    assert ("Evalution.txt", "line 5: S02S-F01-S-FM99: no recording MSP-IMPROV-S02S-F01-S-FM99.wav") in reasons
    assert any("line 6: not a label line" in reason for _, reason in reasons), "there is no session 9"
    assert len(reasons) == 3


def test_a_doubled_tree_counts_once_and_the_other_spelling_of_the_label_file_is_read(tree: Path) -> None:
    clip(tree / "copy/session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.wav")
    (tree / "Evalution.txt").rename(tree / "Evaluation.txt")
    result = msp_improv.parse(tree)
    assert len(result.utterances) == 2
    assert "emotion neutral: 1 clip here, 3,477 in the published corpus" in result.warnings


def test_known_counts_agree_and_the_label_set_knows_every_emotion() -> None:
    assert sum(msp_improv.CLIPS_BY_SCENARIO.values()) == 8438 and sum(msp_improv.CLIPS_BY_EMOTION.values()) == 7798
    known = labels.load_label_set(CONFIGS / "msp_improv_4.yaml")
    assert set(known.classes) | set(known.mapping) == set(msp_improv.EMOTIONS.values())


def test_a_tree_without_labels_is_refused(tmp_path: Path) -> None:
    clip(tmp_path / "MSP-IMPROV-S01A-F01-P-FM01.wav")
    with pytest.raises(UserError, match=r"no file Evalution\.txt, Evaluation\.txt"):
        msp_improv.parse(tmp_path)
