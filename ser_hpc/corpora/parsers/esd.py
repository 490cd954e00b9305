"""ESD, the Emotional Speech Dataset (Zhou et al., Speech Communication 2022): parallel sentences in English and Mandarin.

Layout   ROOT/<speaker>/<Emotion>/<speaker>_<number>.wav, 16 kHz, as in 0011/Angry/0011_000351.wav; in some copies with a folder
         train, evaluation or test between. <speaker>/<speaker>.txt holds the words, with emotions named in Chinese for some
         speakers: not read, as folders and numbers say the same.
Names    Speakers 0001 to 0010 speak Mandarin, 0011 to 0020 English. The numbers of a speaker: 1 to 350 are neutral, then 350
         each of angry, happy, sad and surprise, with the same sentences in the same order.
Counts   35,000 clips: 20 speakers (10 women, 10 men) x 5 emotions x 350 sentences.
Defects  All speakers of a language say the same sentences: `text_id` is the language and the sentence. The parts train,
         evaluation and test (`split`) share all speakers: theirs is no speaker-independent test.
"""

from __future__ import annotations

import re
from pathlib import Path

from ser_hpc.core.errors import listed
from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "<speaker>/<Emotion>/<speaker>_<number>.wav, as in 0011/Angry/0011_000351.wav"
NAME = re.compile(r"(?P<speaker>\d{4})_(?P<number>\d{6})")
EMOTIONS = ("neutral", "angry", "happy", "sad", "surprise")  # in the order of the numbers
SENTENCES = 350
SPLITS = {"train": "train", "evaluation": "dev", "test": "test"}
SPEAKERS = tuple(f"{number:04d}" for number in range(1, 21))
FIRST_ENGLISH = "0011"
MEN = frozenset(["0004", "0005", "0006", "0008", "0010", "0011", "0012", "0013", "0014", "0020"])
CLIPS_BY_EMOTION = dict.fromkeys(EMOTIONS, 7000)
CLIPS_BY_SPEAKER = dict.fromkeys(SPEAKERS, 1750)


def parse(root: Path) -> ParseResult:
    """Return every clip of ESD below `root`. Raises UserError where `root` is no folder or holds no clip."""
    clips, skipped = parse_files(find_recordings(require_folder(root, LAYOUT)), _utterance)
    return make_result(root, LAYOUT, clips, skipped, {"emotion": CLIPS_BY_EMOTION, "speaker": CLIPS_BY_SPEAKER})


def _utterance(path: Path) -> Utterance | str:
    """Return the clip that a file describes by its name and folders, or the reason why it describes none."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        return "the name is not <speaker>_<number>, as in 0011_000351"
    speaker, number = match["speaker"], int(match["number"]) - 1
    if speaker not in SPEAKERS:
        return f"unknown speaker {speaker!r}; known: 0001 to 0020"
    if not 0 <= number < len(EMOTIONS) * SENTENCES:
        return f"number {number + 1} is not one of 1 to {len(EMOTIONS) * SENTENCES}"
    split = SPLITS.get(path.parent.name.lower(), "")
    folder = path.parent.parent.name if split else path.parent.name
    emotion, by_number = folder.lower(), EMOTIONS[number // SENTENCES]
    if emotion not in EMOTIONS:
        return f"the folder {folder!r} is no emotion; known: {listed(EMOTIONS)}"
    if emotion != by_number:
        return f"lies in the folder {folder!r}, but its number is one of {by_number}"
    language = "en" if speaker >= FIRST_ENGLISH else "zh"
    return Utterance(
        corpus="esd",
        utterance_id=path.stem,
        audio_path=path,
        speaker=speaker,
        emotion=emotion,
        gender="male" if speaker in MEN else "female",
        text_id=f"{language}{number % SENTENCES + 1:03d}",
        split=split,
        language=language,
    )
