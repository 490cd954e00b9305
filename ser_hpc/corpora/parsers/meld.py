"""MELD (Poria et al., ACL 2019): turns of the television series Friends, labelled by what is seen, heard and said. English.

Layout   {train,dev,test}_sent_emo.csv and, below folders whose names hold train, dev or test (as train_splits,
         dev_splits_complete, output_repeated_splits_test), clips dia<D>_utt<U>.wav. The release holds videos, from which the
         sound must be taken first: `ffmpeg -i dia0_utt0.mp4 -vn -ar 16000 dia0_utt0.wav`; a clip with a video alone is skipped.
Labels   Columns Utterance, Speaker, Emotion, Sentiment, Dialogue_ID, Utterance_ID, Season, Episode and others.
Names    Dialogue and utterance numbers begin again in each split, so ids begin with the split: train_dia0_utt0.
Counts   13,708 turns: train 9,989, dev 1,109, test 2,610; 7 emotions, of which neutral 6,436.
Defects  69 of the 100 test speakers occur in training: the official split measures known voices. Speakers such as Man, Woman,
         Waiter are other people in each episode, All and Both are several: one name is not one voice.
         train dia125_utt3 is corrupt, dev dia110_utt7 is missing, test dia38_utt4 lasts 305 s.
         The test folder holds some clips twice: `final_videos_testdia...` is the mended one, and used. Most clips have the
         laughter of an audience in them; the sound has two or six channels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, require_folder
from ser_hpc.corpora.parsers import csv_file
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "train_sent_emo.csv, dev_sent_emo.csv and test_sent_emo.csv, and clips such as train_splits/dia0_utt0.wav"
SPLITS = ("train", "dev", "test")
NAME = re.compile(r"(?:(?:train|dev|test)_)?(?P<final>final_videos_test)?dia(?P<dialogue>\d+)_utt(?P<turn>\d+)")
COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season", "Episode")
EMOTIONS = frozenset(["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"])
GENDERS = dict.fromkeys(("Chandler", "Joey", "Ross"), "male") | dict.fromkeys(("Monica", "Phoebe", "Rachel"), "female")
CLIPS_BY_SPLIT = {"train": 9988, "dev": 1108, "test": 2610}  # without the corrupt and the missing one
KNOWN_DEFECTS = {
    ("train", 125, 3): "its video is corrupt in the published corpus",
    ("dev", 110, 7): "its video is missing from the published corpus",
    ("test", 38, 4): "it lasts 305 s in the published corpus: cut it or leave it out",
}
Turn = tuple[str, int, int]  # split, dialogue, utterance


def parse(root: Path) -> ParseResult:
    """Return every labelled turn under `root` whose sound is there. Raises UserError where there are no labels, or no sound."""
    require_folder(root, LAYOUT)
    files = find_recordings(root)
    sounds, skipped = _by_turn(root, files)
    videos, _ = _by_turn(root, sorted(root.rglob("*.mp4")))
    utterances: list[Utterance] = []
    tables = {split: table for split in SPLITS if (table := csv_file.find_nearest(root, f"{split}_sent_emo.csv"))}
    if not tables:
        raise UserError(f"{root} holds no {listed([f'{split}_sent_emo.csv' for split in SPLITS])}; expected {LAYOUT}")
    for split, table in tables.items():
        labelled = set()
        for row in csv_file.read_rows(table, COLUMNS):
            clips = _clips(split, row, sounds, videos)
            if isinstance(clips, str):
                skipped.append((table, clips))
            elif (turn := _turn(split, row)) in labelled:
                skipped.append((table, f"{_id(turn)} is listed twice"))
            else:
                labelled.add(turn)
                utterances += clips
        unlabelled = [turn for turn in sounds if turn[0] == split and turn not in labelled]
        skipped += [(path, "has no usable label") for turn in unlabelled for path in sounds[turn]]
    result = make_result(root, LAYOUT, utterances, skipped, {"split": CLIPS_BY_SPLIT})
    return result.with_warnings(_warnings(result.utterances))


def _by_turn(root: Path, files: list[Path]) -> tuple[dict[Turn, list[Path]], list[tuple[Path, str]]]:
    """Group the files by turn, without those that a corrected one replaces; and (path, reason) of files that are no turn."""
    found: dict[Turn, list[tuple[bool, Path]]] = defaultdict(list)
    skipped = []
    for path in files:
        match, split = NAME.fullmatch(path.stem), _split(path.relative_to(root))
        if match is None or not split:
            reason = "is in no folder of one split (train, dev, test)" if match else "is not named dia<number>_utt<number>"
            skipped.append((path, reason))
        else:
            found[split, int(match["dialogue"]), int(match["turn"])].append((match["final"] is not None, path))
    chosen = {}
    for turn, clips in found.items():
        mended = any(final for final, _ in clips)
        chosen[turn] = [path for final, path in clips if final == mended]
        skipped += [(path, f"{chosen[turn][0].name} is its mended version") for final, path in clips if final != mended]
    return chosen, skipped


def _split(path: Path) -> str:
    """Return the split that a clip's name or the nearest folder with a split's name gives; "" if none, or several, do."""
    for name in (path.stem.split("dia")[0], *(folder.name for folder in path.parents)):
        if found := set(re.findall("train|dev|test", name.lower())):
            return found.pop() if len(found) == 1 else ""
    return ""


def _turn(split: str, row: dict[str, str]) -> Turn:
    return split, int(row["Dialogue_ID"]), int(row["Utterance_ID"])


def _id(turn: Turn) -> str:
    return f"{turn[0]}_dia{turn[1]}_utt{turn[2]}"


def _clips(
    split: str, row: dict[str, str], sounds: dict[Turn, list[Path]], videos: dict[Turn, list[Path]]
) -> list[Utterance] | str:
    """Return the turn of a row, once for each copy of its sound; or the reason why it cannot be used."""
    if not row["Dialogue_ID"].isdecimal() or not row["Utterance_ID"].isdecimal():
        return f"Dialogue_ID {row['Dialogue_ID']!r} and Utterance_ID {row['Utterance_ID']!r} must be numbers"
    turn, emotion = _turn(split, row), row["Emotion"].lower()
    if emotion not in EMOTIONS:
        return f"{_id(turn)}: unknown emotion {emotion!r}; known: {listed(sorted(EMOTIONS))}"
    if turn not in sounds:
        known = f" ({KNOWN_DEFECTS[turn]})" if turn in KNOWN_DEFECTS else ""
        if turn not in videos:
            return f"{_id(turn)}: no recording{known}"
        video = videos[turn][0]
        command = f"ffmpeg -i {video} -vn -ar 16000 {video.with_suffix('.wav')}"
        return f"{_id(turn)}: only its video{known}; take the sound from it: {command}"
    return [_utterance(path, turn, emotion, row) for path in sounds[turn]]


def _utterance(path: Path, turn: Turn, emotion: str, row: dict[str, str]) -> Utterance:
    speaker = row["Speaker"]
    extra = {"dialogue": f"{turn[0]}_dia{turn[1]}", "season": row["Season"], "episode": row["Episode"]}
    return Utterance(
        corpus="meld",
        utterance_id=_id(turn),
        audio_path=path,
        speaker=speaker,
        emotion=emotion,
        gender=GENDERS.get(speaker, ""),
        split=turn[0],
        language="en",
        extra=extra | {"sentiment": row["Sentiment"], "transcript": row["Utterance"]},
    )


def _warnings(clips: Sequence[Utterance]) -> list[str]:
    ids = {clip.utterance_id for clip in clips}
    warnings = [f"{_id(turn)}: {defect}" for turn, defect in KNOWN_DEFECTS.items() if _id(turn) in ids]
    train, test = ({clip.speaker for clip in clips if clip.split == split} for split in ("train", "test"))
    if train & test:
        warnings.append(
            f"{len(train & test)} of {len(test)} test speakers occur in training too: a result on the official split is one on "
            "known voices, and others plan folds by speaker"
        )
    return warnings
