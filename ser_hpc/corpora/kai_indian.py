"""KAI-Indian: sixteen emotional clips that circulate with other Indian corpora; of unknown origin, speakers and language.

Layout   ROOT/<any folders>/*.wav.
Names    A clip's emotion is the word in its name, else in the nearest folder that has one: angry_1.wav or Angry/1.wav.
Counts   16 clips.
Defects  Nobody knows who speaks: every clip has an unknown speaker, so it can only be trained on, never tested. A clip that
         names no emotion, or several, is left out.
"""

from __future__ import annotations

from pathlib import Path

from ser_hpc.corpora.parse_result import ParseResult, count_warnings, existing_folder, finish, recordings
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER, Utterance
from ser_hpc.corpora.words import emotion_folder, plain_id, word_in
from ser_hpc.errors import listed

LAYOUT = "wav files with an emotion in the name or the folder, as angry_1.wav"
SPELLINGS = {
    "anger": "anger",
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "fearful": "fear",
    "happiness": "happy",
    "happy": "happy",
    "neutral": "neutral",
    "sad": "sad",
    "sadness": "sad",
    "surprise": "surprise",
    "surprised": "surprise",
}
CLIPS = 16
UNKNOWN = "nobody knows who speaks: the clips can only be trained on, and who they are may be in another corpus too"


def parse(root: Path) -> ParseResult:
    """Every clip under `root` that names an emotion. Raises UserError where `root` is no folder or holds no such clip."""
    existing_folder(root, LAYOUT)
    utterances: list[Utterance] = []
    skipped: list[tuple[Path, str]] = []
    for path in recordings(root):
        folder = emotion_folder(path, root, SPELLINGS)
        word = word_in(path.stem, SPELLINGS) or (word_in(folder.name, SPELLINGS) if folder else "")
        if not word:
            skipped.append((path, f"neither name nor folder says one emotion; known: {listed(list(SPELLINGS), 12)}"))
            continue
        utterances.append(
            Utterance(
                corpus="kai_indian",
                utterance_id=plain_id(SPELLINGS[word], path.stem),
                audio_path=path,
                speaker=UNKNOWN_SPEAKER,
                emotion=SPELLINGS[word],
            )
        )
    once = {clip.utterance_id: clip for clip in utterances}.values()
    warnings = count_warnings("corpus", (clip.corpus for clip in once), {"kai_indian": CLIPS})
    return finish(root, LAYOUT, utterances, [*warnings, UNKNOWN], skipped)
