"""IESC, the Indian Emotional Speech Corpora (Singh et al.): acted, eight speakers from the north of India. On Kaggle.

Layout   ROOT/<speaker>/<Emotion>/*.wav, as in Speaker-2/Neutral; any folders around them will do.
Names    Speaker and emotion are the two folders; the file's name is a part of the id only.
Counts   600 clips, 8 speakers; anger, fear, happy, neutral, sad.
Defects  All clips are of the same two sentences, and nobody could confirm which field of a name tells them apart: `text_id` is
         empty, though what is tested was heard in training. It is told in a warning.
"""

from __future__ import annotations

from pathlib import Path

from ser_hpc.corpora.parse_result import ParseResult, count_warnings, existing_folder, finish, recordings
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.corpora.words import emotion_folder, plain_id, word_in

LAYOUT = "<speaker>/<emotion>/<clip>.wav, with the emotions Anger, Fear, Happy, Neutral and Sad"
SPELLINGS = {"anger": "anger", "angry": "anger", "fear": "fear", "happy": "happy", "neutral": "neutral", "sad": "sad"}
CLIPS, SPEAKERS = 600, 8
SAME_TEXT = "the same two sentences are said in every clip and not told apart: training and test say the same words"


def parse(root: Path) -> ParseResult:
    """Every clip of IESC under `root`. Raises UserError where `root` is no folder or holds no clip."""
    existing_folder(root, LAYOUT)
    utterances: list[Utterance] = []
    skipped: list[tuple[Path, str]] = []
    for path in recordings(root):
        folder = emotion_folder(path, root, SPELLINGS)
        if folder is None or folder.parent == root:
            skipped.append((path, f"is not below a speaker's and an emotion's folder; expected {LAYOUT}"))
            continue
        speaker, emotion = folder.parent.name.lower(), SPELLINGS[word_in(folder.name, SPELLINGS)]
        utterances.append(
            Utterance(
                corpus="iesc",
                utterance_id=plain_id(speaker, emotion, path.stem),
                audio_path=path,
                speaker=speaker,
                emotion=emotion,
                language="en",
            )
        )
    once = {clip.utterance_id: clip for clip in utterances}.values()
    warnings = count_warnings("corpus", (clip.corpus for clip in once), {"iesc": CLIPS})
    if (found := len({clip.speaker for clip in once})) != SPEAKERS:
        warnings.append(f"{found} speakers here, {SPEAKERS} in the published corpus")
    return finish(root, LAYOUT, utterances, [*warnings, SAME_TEXT], skipped)
