"""MSP-IMPROV (Busso et al., 2017): acted English dialogues around set sentences, two actors a session. Licensed by UT Dallas.

Layout   ROOT/Evalution.txt (so spelt in the release; Evaluation.txt is read too)            labels
         ROOT/session{1..6}/S01A/{P,R,S,T}/MSP-IMPROV-S01A-F01-P-FM01.wav, or anywhere else below ROOT; 44.1 kHz
Labels   `UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:3.0; V:3.0; D:2.8 ; N:4.2;`: the clip under its video's name; consensus emotion;
         activation, valence, dominance, naturalness (1 to 5, or NaN). Other lines are single raters' and not read.
         **Activation runs from 1, very active, to 5, very calm**: `arousal` is 6 - A, so that more is more, as elsewhere.
Names    `S01A-F01-P-FM01`: target sentence 01 to be said angry (A H N S); the woman of session 1 speaks; natural interaction;
         a code of the turn. Scenarios: P natural interaction, R target sentence read, S other improvised turns, T target
         sentence improvised. Session and speaker are in F01: the pair of session 1 is F01 and M01.
Counts   8,438 turns, 12 speakers, 6 sessions; with a consensus on one of four emotions 7,798.
Defects  The intended emotion in the name is not the label; it is kept in `extra`. The target sentences return in every session:
         `text_id` is the sentence in scenarios R and T, and empty in P and S, where the actors found their own words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.parse_result import ParseResult, count_warnings, find_recordings, make_result, require_folder
from ser_hpc.corpora.parsers import csv_file
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "Evalution.txt or Evaluation.txt, and below it wav files such as MSP-IMPROV-S01A-F01-P-FM01.wav"
LABEL_FILES = ("Evalution.txt", "Evaluation.txt")
NAME = re.compile(r"S(?P<sentence>\d\d)(?P<intended>[AHNS])-(?P<letter>[FM])(?P<session>0[1-6])-(?P<scenario>[PRST])-[A-Z]+\d+")
NUMBER = r"\s*(\d+(?:\.\d+)?|NaN)\s*"
LINE = re.compile(rf"UTD-IMPROV-(\S+)\.avi;\s*([A-Z])\s*;\s*A:{NUMBER};\s*V:{NUMBER};\s*D:{NUMBER};\s*N:{NUMBER};?")
EMOTIONS = {"A": "angry", "H": "happy", "N": "neutral", "S": "sad", "O": "other", "X": "no_agreement"}
GENDERS = {"F": "female", "M": "male"}
CLIPS_BY_EMOTION = {"angry": 792, "happy": 2644, "neutral": 3477, "sad": 885}
CLIPS_BY_SCENARIO = {"P": 2785, "R": 620, "S": 4381, "T": 652}
HIGHEST = 6.0  # the activation scale turned round: 1 to 5 becomes 5 to 1


def parse(root: Path) -> ParseResult:
    """Return every labelled turn under `root`. Raises UserError where `root` is no folder or lacks a label file or turns."""
    labels = csv_file.find_nearest(require_folder(root, LAYOUT), *LABEL_FILES)
    if labels is None:
        raise UserError(f"{root} holds no file {listed(LABEL_FILES)}; expected {LAYOUT}")
    audio: dict[str, list[Path]] = defaultdict(list)
    for path in find_recordings(root):
        audio[path.stem].append(path)
    utterances: list[Utterance] = []
    skipped: list[tuple[Path, str]] = []
    labelled = set()
    for number, line in enumerate(_lines(labels), 1):
        if not line.startswith("UTD-IMPROV-"):
            continue
        match = LINE.fullmatch(line.strip())
        name = NAME.fullmatch(match[1]) if match else None
        if match is None or name is None or match[2] not in EMOTIONS:
            skipped.append((labels, f"line {number}: not a label line of MSP-IMPROV: {line[:80]!r}"))
            continue
        stem = f"MSP-IMPROV-{match[1]}"
        labelled.add(stem)
        utterances += [_utterance(path, match, name) for path in audio[stem]]
        if not audio[stem]:
            skipped.append((labels, f"line {number}: {match[1]}: no recording {stem}.wav"))
    skipped += [(path, "has no label") for stem, paths in audio.items() if stem not in labelled for path in paths]
    result = make_result(root, LAYOUT, utterances, skipped)
    known = [clip.emotion for clip in result.utterances if clip.emotion in CLIPS_BY_EMOTION]
    warnings = count_warnings("emotion", known, CLIPS_BY_EMOTION)
    warnings += count_warnings("scenario", (clip.extra["scenario"] for clip in result.utterances), CLIPS_BY_SCENARIO)
    return result.with_warnings(warnings)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()  # raters' free words are in any encoding
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _utterance(path: Path, match: re.Match[str], name: re.Match[str]) -> Utterance:
    activation, valence, dominance, naturalness = (None if text == "NaN" else float(text) for text in match.groups()[2:])
    extra = {"scenario": name["scenario"], "intended_emotion": EMOTIONS[name["intended"]], "sentence": name["sentence"]}
    return Utterance(
        corpus="msp_improv",
        utterance_id=path.stem,
        audio_path=path,
        speaker=name["letter"] + name["session"],
        emotion=EMOTIONS[match[2]],
        session=f"session{int(name['session'])}",
        gender=GENDERS[name["letter"]],
        text_id=f"S{name['sentence']}" if name["scenario"] in "RT" else "",
        language="en",
        arousal=None if activation is None else HIGHEST - activation,
        valence=valence,
        dominance=dominance,
        extra=extra if naturalness is None else extra | {"naturalness": f"{naturalness:g}"},
    )
