"""CREMA-D (Cao et al., IEEE Trans. Affective Computing 2014): acted English, 91 actors of many ages and origins, 12 sentences.

Layout   ROOT/AudioWAV/*.wav, 16 kHz; beside it VideoDemographics.csv (the actors), and in processedResults summaryTable.csv and
         tabulatedVotes.csv (what listeners perceived, most of them and each). Any folders will do. A clone of the repository
         holds every clip as MP3 too: those are left out.
Names    `<actor>_<sentence>_<emotion>_<level>.wav`, as in 1001_IEO_ANG_HI.wav; level LO MD HI, or XX where none was asked for.
Counts   7,442 clips: 1,271 an emotion, neutral 1,087; a level for sentence IEO only, 455 of each.
Labels   `emotion` is the intended one, which the actor was asked to act. What most listeners perceived is in `extra`, in the
         same words or as "tie": `perceived_multimodal` (sound and picture; equal to the intended one for 72 % of the clips) and
         `perceived_voice` (sound alone; 42 %). What tied is in `tied_multimodal` and `tied_voice`, as "disgust:neutral". How
         many listeners chose what is in `votes_multimodal` and `votes_voice`, as "anger=2 disgust=6 neutral=1": soft labels.
Defects  1076_MTI_SAD_XX is 2.6 s of silence. Three recordings stand under two labels each: 1006_TIE HAP = NEU, 1013_WSI DIS =
         SAD, 1017_IWW ANG = FEA. A zip of the repository holds git-lfs pointers instead of sound. Packing finds these, as it
         looks at the sound. Old copies have 1040_ITH_SAD_X.wav. All actors say the same sentences: `text_id` is the sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.parse_result import ParseResult, count_warnings, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.parsers import csv_file
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "AudioWAV/<actor>_<sentence>_<emotion>_<level>.wav, as in AudioWAV/1001_IEO_ANG_HI.wav"
NAME = re.compile(r"(?P<actor>\d{4})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>LO|MD|HI|XX?)")
SENTENCES = frozenset(["DFA", "IEO", "IOM", "ITH", "ITS", "IWL", "IWW", "MTI", "TAI", "TIE", "TSI", "WSI"])
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
_MODALITIES = {"1": "voice", "3": "multimodal"}  # of 100001 and so on; 2: the face alone
VOTES = {code[0]: emotion for code, emotion in EMOTIONS.items()}
ACTORS = frozenset(str(number) for number in range(1001, 1092))
_WOMEN = """
    1002 1003 1004 1006 1007 1008 1009 1010 1012 1013 1018 1020 1021 1024 1025 1028 1029 1030 1037 1043 1046 1047
    1049 1052 1053 1054 1055 1056 1058 1060 1061 1063 1072 1073 1074 1075 1076 1078 1079 1082 1084 1089 1091
"""
WOMEN = frozenset(_WOMEN.split())
CLIPS_BY_EMOTION = {"anger": 1271, "disgust": 1271, "fear": 1271, "happy": 1271, "neutral": 1087, "sad": 1271}
CLIPS_BY_LEVEL = {"low": 455, "medium": 455, "high": 455, "unspecified": 6077}
Extra = Mapping[str, dict[str, str]]


def parse(root: Path) -> ParseResult:
    """Return every clip of CREMA-D below `root`. Raises UserError where there is none, or a table of the corpus is damaged."""
    warnings: list[str] = []
    people = _people(require_folder(root, LAYOUT), warnings)
    perceived = _perceived(root, warnings)
    summarised = bool(perceived)
    for name, votes in _votes(root).items():
        perceived.setdefault(name, {}).update(votes)
    found, skipped = parse_files(find_recordings(root), lambda path: _utterance(path, people, perceived))
    result = make_result(root, LAYOUT, found, skipped, {"emotion": CLIPS_BY_EMOTION})
    clips = result.utterances
    warnings += [f"{u.audio_path} is read as {u.utterance_id}" for u in clips if u.audio_path.stem.upper() != u.utterance_id]
    warnings += _agreement(clips) if summarised else []
    warnings += count_warnings("level", (u.intensity for u in clips), CLIPS_BY_LEVEL)
    return result.with_warnings(warnings)


def _people(root: Path, warnings: list[str]) -> dict[str, dict[str, str]]:
    """Read age, race and ethnicity of each actor, or add a warning where the copy lacks the table."""
    path = csv_file.find_nearest(root, "VideoDemographics.csv")
    if path is None:
        warnings.append("no VideoDemographics.csv in this copy: the actors' age, race and ethnicity are not known")
        return {}
    columns = {"Age": "age", "Race": "race", "Ethnicity": "ethnicity"}
    rows = csv_file.read_rows(path, ["ActorID", *columns])
    return {row["ActorID"]: {field: row[name] for name, field in columns.items()} for row in rows}


def _perceived(root: Path, warnings: list[str]) -> dict[str, dict[str, str]]:
    """Read what most listeners perceived in each clip, or add a warning where the copy lacks the table."""
    path = csv_file.find_nearest(root, "summaryTable.csv")
    if path is None:
        warnings.append(
            "emotion is the intended label (what the actor was to act); processedResults/summaryTable.csv with the perceived "
            "ones is not in this copy"
        )
        return {}
    columns = {"MultiModalVote": "multimodal", "VoiceVote": "voice"}
    rows = csv_file.read_rows(path, ["FileName", *columns])
    return {
        row["FileName"].upper(): {k: v for name, kind in columns.items() for k, v in _vote(row[name], kind, path).items()}
        for row in rows
    }


def _votes(root: Path) -> dict[str, dict[str, str]]:
    """Read how many listeners chose each emotion; of a copy without the table nothing. A row is of a clip in one modality,
    which the first digit of its number names."""
    path = csv_file.find_nearest(root, "tabulatedVotes.csv")
    votes: dict[str, dict[str, str]] = {}
    for row in csv_file.read_rows(path, ["", *VOTES, "fileName"]) if path else ():
        if (modality := _MODALITIES.get(row[""][:1])) is not None:
            counts = {emotion: row[letter] for letter, emotion in VOTES.items()}
            votes.setdefault(row["fileName"].upper(), {})[f"votes_{modality}"] = csv_file.votes(counts, path)
    return votes


def _vote(code: str, modality: str, table: Path) -> dict[str, str]:
    """Return the fields of `extra` for a vote as in the table: `D`, or `D:N` where two emotions tied."""
    letters = code.split(":")
    if wrong := [letter for letter in letters if letter not in VOTES]:
        raise UserError(f"{table}: unknown emotion {wrong[0]!r} in the vote {code!r}; known: {listed(list(VOTES))}")
    emotions = [VOTES[letter] for letter in letters]
    if len(emotions) == 1:
        return {f"perceived_{modality}": emotions[0]}
    return {f"perceived_{modality}": "tie", f"tied_{modality}": ":".join(emotions)}


def _agreement(clips: Sequence[Utterance]) -> list[str]:
    """Return warnings on which label `emotion` is, how to use the others, and how far they agree in this copy."""
    named = [f"perceived_{modality}" for modality in ("multimodal", "voice")]
    agree = [sum(u.extra.get(name) == u.emotion for u in clips) / max(1, len(clips)) for name in named]
    text = (
        "emotion is the intended label (what the actor was to act); the perceived ones are "
        f"{named[0]} (the same for {agree[0]:.0%} of the clips) and {named[1]} ({agree[1]:.0%})"
    )
    without = sum(named[0] not in u.extra for u in clips)
    return [text, *([f"{without} clips are not in summaryTable.csv: no perceived label"] if without else [])]


def _utterance(path: Path, people: Extra, perceived: Extra) -> Utterance | str:
    """Return the clip that a file name describes, or the reason why it describes none."""
    if path.suffix.lower() == ".mp3":
        return "an MP3; the corpus's WAV files are read"
    match = NAME.fullmatch(path.stem.upper())
    if match is None:
        return "the name is not <actor>_<sentence>_<emotion>_<level>, as in 1001_IEO_ANG_HI"
    actor, sentence, code = match["actor"], match["sentence"], match["emotion"]
    for what, found, known in (("actor", actor, ACTORS), ("sentence", sentence, SENTENCES), ("emotion", code, EMOTIONS)):
        if found not in known:
            return f"unknown {what} {found!r}; known: {listed(sorted(known), 12)}"
    level = LEVELS[match["level"]]
    name = f"{actor}_{sentence}_{code}_{'XX' if level == 'unspecified' else match['level']}"
    return Utterance(
        corpus="crema_d",
        utterance_id=name,
        audio_path=path,
        speaker=actor,
        emotion=EMOTIONS[code],
        gender="female" if actor in WOMEN else "male",
        text_id=sentence,
        intensity=level,
        language="en",
        extra=people.get(actor, {}) | perceived.get(name, {}),
    )
