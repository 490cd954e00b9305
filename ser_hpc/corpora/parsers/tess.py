"""TESS, the Toronto Emotional Speech Set (Pichora-Fuller and Dupuis, 2010): two actresses, "Say the word ...", 200 words.

Layout   ROOT/<any folders>/*.wav, 24,414 Hz. Folder names vary between copies (OAF_angry, OAF_Fear, YAF_pleasant_surprised):
         the file name alone says what a clip is.
Names    `<speaker>_<word>_<emotion>.wav`, as in OAF_back_angry.wav; speaker OAF (64 years old) or YAF (26); emotion angry,
         disgust, fear, happy, neutral, ps (pleasant surprise) or sad.
Counts   2,800 clips: 1,400 a speaker, 400 an emotion, one for each speaker, word and emotion.
Defects  Two speakers only: a test part is one of them, with every sentence of the other in training. The popular download holds
         the whole tree twice. Some copies have OA_bite_neutral.wav, and one clip at 96 kHz. `text_id` is the word.
"""

from __future__ import annotations

import re
from pathlib import Path

from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "<any folders>/<OAF or YAF>_<word>_<emotion>.wav, as in OAF_angry/OAF_back_angry.wav"
EMOTIONS = {
    "angry": "angry",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happy",
    "neutral": "neutral",
    "ps": "pleasant_surprise",
    "sad": "sad",
}
NAME = re.compile(rf"(?P<speaker>OA|YA)F?_(?P<word>[a-z]+)_(?P<emotion>{'|'.join(EMOTIONS)})", re.IGNORECASE)
AGES = {"OAF": "64", "YAF": "26"}
CLIPS_BY_EMOTION = dict.fromkeys(EMOTIONS.values(), 400)
CLIPS_BY_SPEAKER = {"OAF": 1400, "YAF": 1400}
TWO_SPEAKERS = "two speakers only, who say the same words: where one of them is trained on, the other makes an easy test"


def parse(root: Path) -> ParseResult:
    """Return every clip of TESS below `root`. Raises UserError where `root` is no folder or holds no clip."""
    clips, skipped = parse_files(find_recordings(require_folder(root, LAYOUT)), _utterance)
    result = make_result(root, LAYOUT, clips, skipped, {"emotion": CLIPS_BY_EMOTION, "speaker": CLIPS_BY_SPEAKER})
    misspelt = [f"{u.audio_path} is read as {u.utterance_id}" for u in result.utterances if not _named_after(u)]
    return result.with_warnings([TWO_SPEAKERS, *misspelt])


def _named_after(clip: Utterance) -> bool:
    return clip.audio_path.stem.lower() == clip.utterance_id.lower()


def _utterance(path: Path) -> Utterance | str:
    """Return the clip that a file name describes, or the reason why it describes none."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        return "the name is not <OAF or YAF>_<word>_<emotion>, as in OAF_back_angry"
    speaker, word, code = f"{match['speaker'].upper()}F", match["word"].lower(), match["emotion"].lower()
    return Utterance(
        corpus="tess",
        utterance_id=f"{speaker}_{word}_{code}",
        audio_path=path,
        speaker=speaker,
        emotion=EMOTIONS[code],
        gender="female",
        text_id=word,
        language="en",
        extra={"age": AGES[speaker]},
    )
