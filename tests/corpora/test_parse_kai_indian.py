"""KAI-Indian: an emotion is a word of the name or of a folder, and nobody's voice is ever tested."""

from __future__ import annotations

from pathlib import Path

from trees import clip

from ser_hpc.corpora.parsers import kai_indian
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER


def test_words_of_names_and_folders_are_emotions_and_all_speakers_are_unknown(tmp_path: Path) -> None:
    clip(tmp_path / "Angry_1.wav")
    clip(tmp_path / "sadness/2.wav", rate=22050, channels=2)
    clip(tmp_path / "happy_or_sad.wav")
    clip(tmp_path / "happystance.wav")
    result = kai_indian.parse(tmp_path)
    assert [(u.emotion, u.utterance_id, u.speaker) for u in result.utterances] == [
        ("anger", "anger-Angry_1", UNKNOWN_SPEAKER),
        ("sad", "sad-2", UNKNOWN_SPEAKER),
    ]
    assert {path.name for path, _ in result.skipped} == {"happy_or_sad.wav", "happystance.wav"}
    assert kai_indian.UNKNOWN in result.warnings
    assert "corpus kai_indian: 2 clips here, 16 in the published corpus" in result.warnings
