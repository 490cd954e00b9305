"""KAI-Indian: sixteen emotional clips that circulate with other Indian corpora; of unknown origin, speakers and language.

Layout   ROOT/<any folders>/*.wav.
Names    A clip's emotion is the word in its name, else in the nearest folder that has one: angry_1.wav or Angry/1.wav.
Counts   16 clips.
Defects  Nobody knows who speaks: every clip has an unknown speaker, so it can only be trained on, never tested. A clip that
         names no emotion, or several, is left out.
"""

from __future__ import annotations

from pathlib import Path

from ser_hpc.core.errors import listed
from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.spelling import emotion_folder, plain_id, word_in
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER, Utterance

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
    """Return every clip under `root` that names an emotion. Raises UserError where `root` is no folder or holds none."""
    clips, skipped = parse_files(find_recordings(require_folder(root, LAYOUT)), lambda path: _utterance(path, root))
    return make_result(root, LAYOUT, clips, skipped, {"corpus": {"kai_indian": CLIPS}}).with_warnings([UNKNOWN])


def _utterance(path: Path, root: Path) -> Utterance | str:
    """Return the clip whose emotion a name or a folder says, or the reason why it is none."""
    folder = emotion_folder(path, root, SPELLINGS)
    word = word_in(path.stem, SPELLINGS) or (word_in(folder.name, SPELLINGS) if folder else "")
    if not word:
        return f"neither name nor folder says one emotion; known: {listed(list(SPELLINGS), 12)}"
    return Utterance(
        corpus="kai_indian",
        utterance_id=plain_id(SPELLINGS[word], path.stem),
        audio_path=path,
        speaker=UNKNOWN_SPEAKER,
        emotion=SPELLINGS[word],
    )
