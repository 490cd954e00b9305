"""SAVEE, Surrey Audio-Visual Expressed Emotion (Haq and Jackson, 2009): four men of Surrey act TIMIT sentences in English.

Layout   ROOT/AudioData/<speaker>/<emotion><number>.wav as published, as in DC/a01.wav, 44.1 kHz; or in one folder, DC_a01.wav.
Names    Speaker DC, JE, JK or KL; emotion a anger, d disgust, f fear, h happiness, n neutral, sa sadness, su surprise; and the
         number of the sentence within its emotion.
Counts   480 clips: 120 a speaker; 60 an emotion, neutral 120.
Defects  All speakers say the same sentences: `text_id` is emotion and number. Three sentences occur in every emotion, and each
         emotion's own two in neutral, under numbers that nothing here tells: `text_id` takes them for different ones.
"""

from __future__ import annotations

import re
from pathlib import Path

from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "<speaker>/<emotion><number>.wav or <speaker>_<emotion><number>.wav, as in DC/a01.wav or DC_a01.wav"
SPEAKERS = ("DC", "JE", "JK", "KL")
EMOTIONS = {
    "sa": "sadness",
    "su": "surprise",
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
}
NAME = re.compile(rf"(?:(?P<speaker>{'|'.join(SPEAKERS)})_)?(?P<text>(?P<emotion>{'|'.join(EMOTIONS)})\d\d)", re.IGNORECASE)
CLIPS_BY_EMOTION = dict.fromkeys(EMOTIONS.values(), 60) | {"neutral": 120}
CLIPS_BY_SPEAKER = dict.fromkeys(SPEAKERS, 120)


def parse(root: Path) -> ParseResult:
    """Return every clip of SAVEE below `root`. Raises UserError where `root` is no folder or holds no clip."""
    clips, skipped = parse_files(find_recordings(require_folder(root, LAYOUT)), _utterance)
    return make_result(root, LAYOUT, clips, skipped, {"emotion": CLIPS_BY_EMOTION, "speaker": CLIPS_BY_SPEAKER})


def _utterance(path: Path) -> Utterance | str:
    """Return the clip that a file describes by its name and folder, or the reason why it describes none."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        return "the name is not <emotion><number> or <speaker>_<emotion><number>, as in a01 or DC_a01"
    speaker, text = (match["speaker"] or path.parent.name).upper(), match["text"].lower()
    if speaker not in SPEAKERS:
        return f"no speaker in its name, and the folder {path.parent.name!r} is none of DC, JE, JK and KL"
    return Utterance(
        corpus="savee",
        utterance_id=f"{speaker}_{text}",
        audio_path=path,
        speaker=speaker,
        emotion=EMOTIONS[match["emotion"].lower()],
        gender="male",
        text_id=text,
        language="en",
    )
