"""CREMA-D (Cao et al., IEEE Trans. Affective Computing 2014): acted English, 91 actors of many ages and origins, 12 sentences.

Layout   ROOT/AudioWAV/*.wav, 16 kHz; beside it VideoDemographics.csv (actors) and processedResults/summaryTable.csv (listeners).
         Any folders will do. A clone of the repository also holds every clip as MP3: those are left out.
Names    `<actor>_<sentence>_<emotion>_<level>.wav`, as in 1001_IEO_ANG_HI.wav; level LO MD HI, or XX where none was asked for.
Counts   7,442 clips; 1,271 an emotion, neutral 1,087; a level only for sentence IEO (455 each). 82 clips an actor, five have fewer.
Labels   `emotion` is the intended one: what the actor was asked to act. What most listeners perceived is in `extra`, as
         `perceived_multimodal` (sound and picture) and `perceived_voice` (sound alone): the same words, or "tie"; then
         `tied_multimodal` / `tied_voice` hold what tied, as "disgust:neutral". They agree with the intended one on 72 % and 42 %.
Defects  1076_MTI_SAD_XX is 2.6 s of silence. Three recordings stand under two labels each: 1006_TIE HAP = NEU, 1013_WSI DIS =
         SAD, 1017_IWW ANG = FEA. A zip of the repository holds git-lfs pointers instead of sound. All of that shows in the sound,
         so packing finds it. Old copies have 1040_ITH_SAD_X.wav. All actors say the same sentences: `text_id` is the sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ser_hpc.corpora import csv_file
from ser_hpc.corpora.parse_result import ParseResult, count_warnings, existing_folder, finish, recordings
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.errors import UserError, listed

LAYOUT = "AudioWAV/<actor>_<sentence>_<emotion>_<level>.wav, as in AudioWAV/1001_IEO_ANG_HI.wav"
NAME = re.compile(r"(?P<actor>\d{4})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>LO|MD|HI|XX?)")
SENTENCES = frozenset("DFA IEO IOM ITH ITS IWL IWW MTI TAI TIE TSI WSI".split())
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
VOTES = {code[0]: emotion for code, emotion in EMOTIONS.items()}
ACTORS = frozenset(str(number) for number in range(1001, 1092))
WOMEN = frozenset(
    "1002 1003 1004 1006 1007 1008 1009 1010 1012 1013 1018 1020 1021 1024 1025 1028 1029 1030 1037 1043 1046 1047 "
    "1049 1052 1053 1054 1055 1056 1058 1060 1061 1063 1072 1073 1074 1075 1076 1078 1079 1082 1084 1089 1091".split()
)
CLIPS_BY_EMOTION = {"anger": 1271, "disgust": 1271, "fear": 1271, "happy": 1271, "neutral": 1087, "sad": 1271}
CLIPS_BY_LEVEL = {"low": 455, "medium": 455, "high": 455, "unspecified": 6077}
Extra = Mapping[str, dict[str, str]]


def parse(root: Path) -> ParseResult:
    """Every clip of CREMA-D below `root`. Raises UserError where there is none, or where a table of the corpus is damaged."""
    utterances: list[Utterance] = []
    skipped: list[tuple[Path, str]] = []
    warnings: list[str] = []
    paths = recordings(existing_folder(root, LAYOUT))
    people, votes = _demographics(root, warnings), _perceived(root, warnings)
    for path in paths:
        clip = _utterance(path, people, votes)
        if isinstance(clip, Utterance):
            utterances.append(clip)
            if clip.utterance_id != path.stem.upper():
                warnings.append(f"{path} is read as {clip.utterance_id}, as the published corpus names it")
        else:
            skipped.append((path, clip))
    result = finish(root, LAYOUT, utterances, warnings, skipped)
    counts = count_warnings("emotion", (u.emotion for u in result.utterances), CLIPS_BY_EMOTION)
    counts += count_warnings("level", (u.intensity for u in result.utterances), CLIPS_BY_LEVEL)
    told = (*result.warnings, _which_label(result.utterances), *counts)
    return ParseResult(result.utterances, told, result.skipped)
