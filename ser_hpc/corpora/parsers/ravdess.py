"""RAVDESS (Livingstone and Russo, PLoS ONE 2018): acted North American English, 24 actors; the speech, sound only.

Layout   ROOT/Actor_<01 to 24>/*.wav, 48 kHz, in any folders. Songs and videos of the same corpus may lie beside: not read.
Names    `<modality>-<channel>-<emotion>-<intensity>-<statement>-<repetition>-<actor>.wav`, as in 03-01-06-01-02-01-12.wav:
         modality 03 is sound only, channel 01 speech; intensity 01 normal, 02 strong; statement 01 "Kids are talking by the
         door", 02 "Dogs are sitting by the door"; two repetitions; actors with odd numbers are men.
Counts   1,440 clips: 60 an actor, 192 an emotion, neutral 96 (neutral is never strong).
Defects  The popular download holds its tree twice. Some clips are stereo, and some copies hold clips at other rates: packing
         converts both. Every actor says the same two statements: `text_id` is the statement.
"""

from __future__ import annotations

import re
from pathlib import Path

from ser_hpc.core.errors import listed
from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "<modality>-<channel>-<emotion>-<intensity>-<statement>-<repetition>-<actor>.wav, as in 03-01-06-01-02-01-12.wav"
NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
NOT_SOUND = {"01": "sound and picture", "02": "picture only"}
SONG = "02"
EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
INTENSITIES = {"01": "normal", "02": "strong"}
ACTORS = tuple(f"{number:02d}" for number in range(1, 25))
CLIPS_BY_EMOTION = dict.fromkeys(EMOTIONS.values(), 192) | {"neutral": 96}
CLIPS_BY_SPEAKER = dict.fromkeys(ACTORS, 60)


def parse(root: Path) -> ParseResult:
    """Return every speech clip of RAVDESS below `root`. Raises UserError where `root` is no folder or holds none."""
    videos = [path for path in require_folder(root, LAYOUT).rglob("*.[mM][pP]4") if not path.name.startswith(".")]
    clips, skipped = parse_files(sorted([*find_recordings(root), *videos]), _utterance)
    return make_result(root, LAYOUT, clips, skipped, {"emotion": CLIPS_BY_EMOTION, "speaker": CLIPS_BY_SPEAKER})


def _utterance(path: Path) -> Utterance | str:
    """Return the clip that a file name describes, or the reason why it describes none, or none of the speech."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        return "the name is not seven numbers of two digits, as in 03-01-06-01-02-01-12"
    modality, channel, emotion, intensity, statement, repetition, actor = match.groups()
    if modality in NOT_SOUND:
        return f"modality {modality} is {NOT_SOUND[modality]}; only 03, sound alone, is read"
    if channel == SONG:
        return "channel 02 is song; only 01, speech, is read"
    numbers = ("01", "02")
    for what, found, known in (
        ("modality", modality, ("03",)),
        ("channel", channel, ("01",)),
        ("emotion", emotion, tuple(EMOTIONS)),
        ("intensity", intensity, numbers),
        ("statement", statement, numbers),
        ("repetition", repetition, numbers),
        ("actor", actor, ACTORS),
    ):
        if found not in known:
            return f"unknown {what} {found!r}; known: {listed(known, 24)}"
    return Utterance(
        corpus="ravdess",
        utterance_id=path.stem,
        audio_path=path,
        speaker=actor,
        emotion=EMOTIONS[emotion],
        gender="male" if int(actor) % 2 else "female",
        text_id=statement,
        intensity=INTENSITIES[intensity],
        language="en",
        extra={"repetition": repetition},
    )
