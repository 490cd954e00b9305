"""URDU (Latif et al., 2018): turns of Urdu talk shows, unscripted, freely available.

Layout   ROOT/{Angry,Happy,Neutral,Sad}/*.wav, 44.1 kHz.
Names    `S<sex><speaker>_F<file>_<emotion><number>.wav`, as in SM1_F1_A001.wav: man 1; emotions A H N S, as the folder says.
Counts   400 clips, 100 an emotion; 29 speakers in the names.
Defects  The README counts 38 speakers. SM5 has 80 of the clips, and every angry clip is a man's: folds over speakers come out
         uneven, and a model may take the voice for the emotion. Both are told in the warnings.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.spelling import emotion_folder, word_in
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "<emotion>/S<M or F><speaker>_F<file>_<letter><number>.wav, as in Angry/SM1_F1_A001.wav"
NAME = re.compile(r"S(?P<sex>[MF])(?P<number>\d+)_F\d+_(?P<emotion>[AHNS])\d+", re.IGNORECASE)
EMOTIONS = {"A": "angry", "H": "happy", "N": "neutral", "S": "sad"}
GENDERS = {"F": "female", "M": "male"}
CLIPS_BY_EMOTION = dict.fromkeys(EMOTIONS.values(), 100)
SPEAKERS, SPEAKERS_IN_README = 29, 38
LARGE_SHARE = 0.15  # of all clips from one speaker: told


def parse(root: Path) -> ParseResult:
    """Return every clip of URDU under `root`. Raises UserError where `root` is no folder or holds no clip."""
    clips, skipped = parse_files(find_recordings(require_folder(root, LAYOUT)), lambda path: _utterance(path, root))
    result = make_result(root, LAYOUT, clips, skipped, {"emotion": CLIPS_BY_EMOTION})
    return result.with_warnings(_warnings(result.utterances))


def _utterance(path: Path, root: Path) -> Utterance | str:
    """Return the clip that a file name describes, or the reason why it describes none."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        return "the name is not S<M or F><speaker>_F<file>_<letter><number>, as in SM1_F1_A001"
    emotion = EMOTIONS[match["emotion"].upper()]
    folder = emotion_folder(path, root, {word: word for word in EMOTIONS.values()})
    if folder is not None and word_in(folder.name, {word: word for word in EMOTIONS.values()}) != emotion:
        return f"the name says {emotion}, the folder {folder.name}"
    sex = match["sex"].upper()
    return Utterance(
        corpus="urdu",
        utterance_id=path.stem.upper(),
        audio_path=path,
        speaker=f"S{sex}{int(match['number'])}",
        emotion=emotion,
        gender=GENDERS[sex],
        language="ur",
    )


def _warnings(clips: Sequence[Utterance]) -> list[str]:
    speakers, sexes = Counter(clip.speaker for clip in clips), defaultdict(set)
    for clip in clips:
        sexes[clip.emotion].add(clip.gender)
    warnings = [f"{len(speakers)} speakers in the names; {SPEAKERS} in the published ones, {SPEAKERS_IN_README} in the README"]
    warnings += [f"{n} of {len(clips)} clips are of {name}" for name, n in speakers.items() if n >= LARGE_SHARE * len(clips)]
    warnings += [f"all {emotion} clips are of {sex} speakers" for emotion, (sex, *more) in sorted(sexes.items()) if not more]
    return warnings
