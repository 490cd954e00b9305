"""Emo-DB, the Berlin Database of Emotional Speech (Burkhardt et al., Interspeech 2005): acted German, freely available.

Layout   ROOT/wav/*.wav, or in any folders; mono, 16 kHz (some copies: 22,050 Hz).
Names    `<speaker: 2 digits><text: a or b, 2 digits><emotion letter><version letter>.wav`, as in 03a01Fa.wav. The letters are
         German: W Wut, L Langeweile, E Ekel, A Angst, F Freude, T Trauer, N neutral.
Counts   535 clips, 10 speakers (5 women, 5 men), 10 texts, 7 emotions; no sessions.
Defects  Takes that listeners did not recognise were never published, so classes and speakers are uneven: speaker 08 has no
         disgust. Every speaker says the same ten texts: `text_id` is the text's code.
"""

from __future__ import annotations

import re
from pathlib import Path

from ser_hpc.core.errors import listed
from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "wav/<speaker><text><emotion><version>.wav, as in wav/03a01Fa.wav"
NAME = re.compile(r"(?P<speaker>\d\d)(?P<text>[ab]\d\d)(?P<emotion>[A-Z])(?P<version>[a-z])")
EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
GENDERS = dict.fromkeys(("03", "10", "11", "12", "15"), "male") | dict.fromkeys(("08", "09", "13", "14", "16"), "female")
CLIPS_BY_EMOTION = {
    "anger": 127,
    "boredom": 81,
    "disgust": 46,
    "fear": 69,
    "happiness": 71,
    "sadness": 62,
    "neutral": 79,
}
CLIPS_BY_SPEAKER = {
    "03": 49,
    "08": 58,
    "09": 43,
    "10": 38,
    "11": 55,
    "12": 35,
    "13": 61,
    "14": 69,
    "15": 56,
    "16": 71,
}


def parse(root: Path) -> ParseResult:
    """Return every clip of Emo-DB below `root`. Raises UserError where `root` is no folder or holds no clip."""
    clips, skipped = parse_files(find_recordings(require_folder(root, LAYOUT)), _utterance)
    return make_result(root, LAYOUT, clips, skipped, {"emotion": CLIPS_BY_EMOTION, "speaker": CLIPS_BY_SPEAKER})


def _utterance(path: Path) -> Utterance | str:
    """Return the clip that a file name describes, or the reason why it describes none."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        return "the name is not <speaker><text><emotion><version>, as in 03a01Fa"
    speaker, code = match["speaker"], match["emotion"]
    if code not in EMOTIONS:
        return f"unknown emotion letter {code!r}; known: {listed(list(EMOTIONS))}"
    if speaker not in GENDERS:
        return f"unknown speaker {speaker!r}; known: {listed(sorted(GENDERS), 10)}"
    return Utterance(
        corpus="emodb",
        utterance_id=path.stem,
        audio_path=path,
        speaker=speaker,
        emotion=EMOTIONS[code],
        gender=GENDERS[speaker],
        text_id=match["text"],
        language="de",
    )
