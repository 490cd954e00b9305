"""IESC: speaker and emotion are folders, a doubled tree counts once, and that all say the same is told."""

from __future__ import annotations

from pathlib import Path

from trees import clip

from ser_hpc.corpora import labels
from ser_hpc.corpora.parsers import iesc

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"


def test_speaker_and_emotion_are_the_folders_in_any_case_and_a_doubled_tree_counts_once(tmp_path: Path) -> None:
    clip(tmp_path / "IESC/Speaker-2/Neutral/N1 (2).wav")
    clip(tmp_path / "IESC/IESC/speaker-2/NEUTRAL/N1 (2).wav")
    clip(tmp_path / "IESC/Speaker-1/Anger/A1.wav", rate=8000)
    clip(tmp_path / "IESC/Speaker-1/Test/T1.wav")
    clip(tmp_path / "Sad/S1.wav")
    result = iesc.parse(tmp_path)
    anger, neutral = result.utterances
    assert (anger.speaker, anger.emotion, anger.utterance_id) == ("speaker-1", "anger", "speaker-1-anger-A1")
    assert (neutral.utterance_id, neutral.audio_path.parent.parent.parent.name) == ("speaker-2-neutral-N1-2", "IESC")
    assert neutral.audio_path == tmp_path / "IESC/Speaker-2/Neutral/N1 (2).wav"
    reasons = {path.name: reason for path, reason in result.skipped}
    assert reasons.keys() == {"N1 (2).wav", "T1.wav", "S1.wav"} and "which is used" in reasons["N1 (2).wav"]
    assert "corpus iesc: 2 clips here, 600 in the published corpus" in result.warnings
    assert "2 speakers here, 8 in the published corpus" in result.warnings and iesc.SAME_TEXT in result.warnings


def test_the_label_set_knows_every_emotion() -> None:
    assert set(labels.load_label_set(CONFIGS / "iesc_5.yaml").classes) == set(iesc.SPELLINGS.values())
