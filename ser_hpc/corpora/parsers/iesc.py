"""IESC, the Indian Emotional Speech Corpora (Singh et al.): acted, eight speakers from the north of India. On Kaggle.

Layout   ROOT/<speaker>/<Emotion>/*.wav, as in Speaker-2/Neutral; any folders around them will do.
Names    Speaker and emotion are the two folders; the file's name is a part of the id only.
Counts   600 clips, 8 speakers; anger, fear, happy, neutral, sad.
Defects  All clips are of the same two sentences, and nobody could confirm which field of a name tells them apart: `text_id` is
         empty, though what is tested was heard in training. It is told in a warning.
"""

from __future__ import annotations

from pathlib import Path

from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.spelling import emotion_folder, plain_id, word_in
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "<speaker>/<emotion>/<clip>.wav, with the emotions Anger, Fear, Happy, Neutral and Sad"
SPELLINGS = {"anger": "anger", "angry": "anger", "fear": "fear", "happy": "happy", "neutral": "neutral", "sad": "sad"}
CLIPS, SPEAKERS = 600, 8
SAME_TEXT = "the same two sentences are said in every clip and not told apart: training and test say the same words"


def parse(root: Path) -> ParseResult:
    """Return every clip of IESC under `root`. Raises UserError where `root` is no folder or holds no clip."""
    clips, skipped = parse_files(find_recordings(require_folder(root, LAYOUT)), lambda path: _utterance(path, root))
    result = make_result(root, LAYOUT, clips, skipped, {"corpus": {"iesc": CLIPS}})
    found = len({clip.speaker for clip in result.utterances})
    warnings = [f"{found} speakers here, {SPEAKERS} in the published corpus"] if found != SPEAKERS else []
    return result.with_warnings([*warnings, SAME_TEXT])


def _utterance(path: Path, root: Path) -> Utterance | str:
    """Return the clip that two folders describe, or the reason why they describe none."""
    folder = emotion_folder(path, root, SPELLINGS)
    if folder is None or folder.parent == root:
        return f"is not below a speaker's and an emotion's folder; expected {LAYOUT}"
    speaker, emotion = folder.parent.name.lower(), SPELLINGS[word_in(folder.name, SPELLINGS)]
    return Utterance(
        corpus="iesc",
        utterance_id=plain_id(speaker, emotion, path.stem),
        audio_path=path,
        speaker=speaker,
        emotion=emotion,
        language="en",
    )
