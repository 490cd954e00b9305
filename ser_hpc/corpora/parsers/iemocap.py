"""IEMOCAP (Busso et al., 2008): acted English dialogues, improvised and scripted, two actors a session. Licensed by USC.

Layout   ROOT/Session{1..5}/dialog/EmoEvaluation/<dialogue>.txt      labels; files in subfolders are single raters' and not read
         ROOT/Session{1..5}/sentences/wav/<dialogue>/<utterance>.wav  16 kHz, one file an utterance
         ROOT/Session{1..5}/dialog/wav/<dialogue>.wav                 whole dialogues: skipped
Labels   `[6.2901 - 8.2357]<TAB>Ses01F_impro01_F000<TAB>neu<TAB>[2.5000, 2.5000, 2.5000]`: times in the dialogue's recording,
         utterance, emotion, [valence, activation, dominance] (1 to 5). `%` begins a header, `C-` and `A-` a rater's own.
Names    `Ses01F_impro01_M003`: session 01; the woman wore the motion markers; dialogue impro01; the **man** speaks, his turn 3.
         The first letter is not the speaker's: the speaker is the session and the letter of the last field, here Ses01M.
Counts   10,039 utterances, 10 speakers, 5 sessions; in the usual four classes (excited merged into happy) 5,531.
Defects  Scripted dialogues are played again in every session, so their words are on both sides of any split. Which turn of one
         session matches which of another is not annotated, as actors split and skip lines: `text_id` therefore names the script
         (script01_1; its continuation script01_1b is the same script) and not the sentence, and is empty where the actors
         improvised. Clips without a `text_id` are the improvised part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, require_folder, visible_files
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "Session1 ... Session5 with dialog/EmoEvaluation/*.txt and sentences/wav/ (the folder IEMOCAP_full_release)"
SCENE = r"impro0[1-8][ab]?|script0[1-3]_[1-3]b?"
NAME = re.compile(rf"(?P<dialogue>(?P<session>Ses0[1-5])[FM]_(?P<scene>{SCENE}))_(?P<letter>[FM])\d{{3}}")
NUMBER = r"(-?\d+(?:\.\d+)?)"
LINE = re.compile(rf"\[[\d.]+ - [\d.]+\]\t(\S+)\t(\S+)\t\[{NUMBER}, {NUMBER}, {NUMBER}\]")
NOT_A_LABEL = ("%", "C-", "A-")
GENDERS = {"F": "female", "M": "male"}
CLIPS_BY_SESSION = {"Ses01": 1819, "Ses02": 1811, "Ses03": 2136, "Ses04": 2103, "Ses05": 2170}
CLIPS_BY_EMOTION = {
    "neu": 1708,
    "hap": 595,
    "sad": 1084,
    "ang": 1103,
    "sur": 107,
    "fea": 40,
    "dis": 2,
    "fru": 1849,
    "exc": 1041,
    "oth": 3,
    "xxx": 2507,  # raters did not agree
}


def parse(root: Path) -> ParseResult:
    """Return every labelled utterance under `root`. Raises UserError where `root` is no folder or holds no labelled session."""
    require_folder(root, LAYOUT)
    utterances: list[Utterance] = []
    skipped: list[tuple[Path, str]] = []
    for session, labels in _label_files(root):
        audio = session / "sentences" / "wav" / labels.stem
        for number, line in _label_lines(labels):
            clip = _utterance(line, labels.stem, audio)
            if isinstance(clip, Utterance):
                utterances.append(clip)
            else:
                skipped.append((labels, f"line {number}: {clip}"))
    labelled = {u.audio_path for u in utterances}
    skipped += [(path, "no line of labels is about this recording") for path in find_recordings(root) if path not in labelled]
    return make_result(root, LAYOUT, utterances, skipped, {"session": CLIPS_BY_SESSION, "emotion": CLIPS_BY_EMOTION})


def _label_files(root: Path) -> Iterator[tuple[Path, Path]]:
    """List (session folder, label file) of every dialogue, by name."""
    for session in sorted(root.glob("Session[1-5]")):
        folder = session / "dialog" / "EmoEvaluation"
        if not folder.is_dir():
            raise UserError(f"{session} has no folder dialog/EmoEvaluation with the labels; expected {LAYOUT}")
        yield from ((session, path) for path in visible_files(folder) if path.suffix == ".txt")


def _label_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of the utterances' lines of a label file, and of any line of an unknown kind."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file of labels: {error}") from error
    yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith(NOT_A_LABEL))


def _utterance(line: str, dialogue: str, audio: Path) -> Utterance | str:
    """Return the clip that a label line describes, or the reason why there is none."""
    match = LINE.fullmatch(line.rstrip())
    if match is None:
        return f"not a label line: {line[:80]!r}"
    utterance_id, emotion, valence, arousal, dominance = match.groups()
    name = NAME.fullmatch(utterance_id)
    if name is None or name["dialogue"] != dialogue:
        return f"{utterance_id!r} is not the name of an utterance of dialogue {dialogue!r}"
    if emotion not in CLIPS_BY_EMOTION:
        return f"{utterance_id}: unknown emotion {emotion!r}; known: {listed(list(CLIPS_BY_EMOTION), 11)}"
    path = audio / f"{utterance_id}.wav"
    if not path.is_file():
        return f"{utterance_id}: no recording {path}"
    return Utterance(
        corpus="iemocap",
        utterance_id=utterance_id,
        audio_path=path,
        speaker=name["session"] + name["letter"],
        emotion=emotion,
        session=name["session"],
        gender=GENDERS[name["letter"]],
        text_id=name["scene"].removesuffix("b") if name["scene"].startswith("script") else "",
        language="en",
        arousal=float(arousal),
        valence=float(valence),
        dominance=float(dominance),
    )
