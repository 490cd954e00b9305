"""UrduSER (Akhtar et al., Data in Brief 2025): clips of Pakistani television drama, ten actors, nearly every text but once.

Layout   ROOT/<emotion>/*.wav: the folder around a clip names its emotion, in any case and with other words beside it.
Names    `<actor>_<0 man, 1 woman>_<emotion 1 to 7>_<take>.wav`, as in 1_0_1_01.wav, after one public description of the corpus.
Counts   3,500 clips: 7 emotions x 10 actors x 50.
Defects  Nobody could look at the corpus here. The folder decides the emotion; a name that disagrees leaves the clip out, a
         name of another kind leaves the speaker unknown, so that the clip can only be trained on. All of it is told. The
         published spreadsheet lists file, actor and text: where names say nothing, make a table of it and read that (csv).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.spelling import emotion_folder, plain_id, word_in
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER, Utterance

LAYOUT = "<emotion>/<actor>_<0 or 1>_<emotion 1 to 7>_<take>.wav, as in Angry/1_0_1_01.wav"
NAME = re.compile(r"(?P<actor>\d+)_(?P<gender>[01])_(?P<emotion>[1-7])_\d+")
EMOTIONS = ("angry", "fear", "boredom", "disgust", "happy", "neutral", "sad")  # in the order of their numbers, from 1
SPELLINGS = {word: word for word in EMOTIONS}
GENDERS = {"0": "male", "1": "female"}
CLIPS_BY_EMOTION = dict.fromkeys(EMOTIONS, 500)
SPEAKERS = 10
LOOSE = "the meaning of UrduSER's names rests on one public description: compare speakers and genders with its spreadsheet"


def parse(root: Path) -> ParseResult:
    """Return every clip of UrduSER under `root`. Raises UserError where `root` is no folder or holds no clip."""
    clips, skipped = parse_files(find_recordings(require_folder(root, LAYOUT)), lambda path: _utterance(path, root))
    result = make_result(root, LAYOUT, clips, skipped, {"emotion": CLIPS_BY_EMOTION})
    return result.with_warnings(_warnings(result.utterances))


def _warnings(clips: Sequence[Utterance]) -> list[str]:
    warnings = [LOOSE]
    if (found := len({clip.speaker for clip in clips} - {UNKNOWN_SPEAKER})) != SPEAKERS:
        warnings.append(f"{found} speakers here, {SPEAKERS} in the published corpus")
    if unknown := sum(clip.speaker == UNKNOWN_SPEAKER for clip in clips):
        warnings.append(f"{unknown} names do not say who speaks, as 1_0_1_01 does: these clips can only be trained on")
    return warnings


def _utterance(path: Path, root: Path) -> Utterance | str:
    """Return the clip that a folder and a name describe, or the reason why they describe none."""
    folder = emotion_folder(path, root, SPELLINGS)
    if folder is None:
        return f"is below no folder of an emotion; expected {LAYOUT}"
    emotion = word_in(folder.name, SPELLINGS)
    match = NAME.fullmatch(path.stem)
    if match and EMOTIONS[int(match["emotion"]) - 1] != emotion:
        return f"the name says {EMOTIONS[int(match['emotion']) - 1]}, the folder {folder.name}"
    return Utterance(
        corpus="urduser",
        utterance_id=plain_id(emotion, path.stem),
        audio_path=path,
        speaker=f"actor{int(match['actor'])}" if match else UNKNOWN_SPEAKER,
        emotion=emotion,
        gender=GENDERS[match["gender"]] if match else "",
        language="ur",
    )
