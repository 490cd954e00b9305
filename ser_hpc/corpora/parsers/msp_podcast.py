"""MSP-Podcast (Lotfian and Busso, IEEE Trans. Affective Computing 2019): natural English from podcasts. Licensed by UT Dallas.

Layout   ROOT/Labels/labels_consensus.csv (in older releases labels_concensus.csv), ROOT/Audios/*.wav (or Audio/), 16 kHz.
Labels   A line a clip: FileName; EmoClass A angry, S sad, H happy, U surprised, F fear, D disgust, C contempt, N neutral, O
         other, X no agreement; EmoAct, EmoVal, EmoDom from 1 to 7; SpkrID, or Unknown; Gender; Split_Set Train, Development
         (or Validation), Test1, Test2, Test3. `split` is train, dev or test, and `split_set` in `extra` the corpus's own name.
Votes    Beside it labels_detailed.csv, a line an annotator, in either of two forms: EmoClass_Major is a column, or EmoDetail is
         `WORKER1; Neutral; Neutral,Concerned; A:4; V:4; D:4;`. The primary emotions are counted in `extra`, as `votes`:
         "angry=1 neutral=4"; what is none of the eight is other.
Names    `MSP-PODCAST_<podcast>_<segment>.wav`; the podcast is in `extra`.
Counts   It grows with each release. Release 1.11: 149,307 labelled clips, and 2,347 in Test3 whose labels are not published.
Defects  The speaker of many training clips is not known. Test1 and Test2 share some speakers: as `test` they are one part, and
         `split_set` tells them apart.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, require_folder
from ser_hpc.corpora.parsers import csv_file
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER, Utterance

LAYOUT = "Labels/labels_consensus.csv and Audios/MSP-PODCAST_0001_0008.wav"
LABELS = ("labels_consensus.csv", "labels_concensus.csv")
COLUMNS = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
NAME = re.compile(r"MSP-PODCAST_(?P<podcast>\w+?)_\w+", re.IGNORECASE)
EMOTIONS = {
    "A": "angry",
    "S": "sad",
    "H": "happy",
    "U": "surprised",
    "F": "fear",
    "D": "disgust",
    "C": "contempt",
    "N": "neutral",
    "O": "other",
    "X": "no_agreement",
}
DETAILED = "labels_detailed.csv"
_NAMED = {name: name for name in EMOTIONS.values() if name not in ("other", "no_agreement")} | {"surprise": "surprised"}
SPLITS = {"train": "train", "development": "dev", "validation": "dev", "test1": "test", "test2": "test", "test3": "test"}
GENDERS = {"female": "female", "male": "male", "unknown": "", "": ""}
RELEASE = "1.11"  # whose counts are published
CLIPS_BY_SPLIT = {"Train": 84_030, "Development": 19_815, "Test1": 30_647, "Test2": 14_815}


def parse(root: Path) -> ParseResult:
    """Return every labelled clip of MSP-Podcast below `root`. Raises UserError if the labels or all recordings are missing."""
    labels = csv_file.find_nearest(require_folder(root, LAYOUT), *LABELS)
    if labels is None:
        raise UserError(f"{root} holds no {' or '.join(LABELS)}; expected {LAYOUT}")
    audio, skipped = _audio(root)
    warnings: list[str] = []
    votes = _votes(root, warnings)
    utterances: list[Utterance] = []
    unlabelled = dict(audio)
    for line, row in enumerate(csv_file.read_rows(labels, COLUMNS), 2):
        stem = Path(row["FileName"]).stem
        unlabelled.pop(stem.lower(), None)
        clip = _utterance(row, stem, audio.get(stem.lower()), votes.get(stem.lower(), ""))
        if isinstance(clip, Utterance):
            utterances.append(clip)
        else:
            skipped.append((labels, f"line {line}: {clip}"))
    skipped += [(path, f"no line in {labels.name} (the labels of Test3 are not published)") for path in unlabelled.values()]
    result = make_result(root, LAYOUT, utterances, skipped)
    return result.with_warnings(warnings + _warnings(result.utterances))


def _audio(root: Path) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Return the recordings by name without suffix, in lower case, and (path, reason) of their copies in a doubled tree."""
    first: dict[str, Path] = {}
    paths = sorted(find_recordings(root), key=lambda path: (len(path.parts), str(path)))
    copies = [path for path in paths if first.setdefault(path.stem.lower(), path) is not path]
    return first, [(path, "the same name as another file, which is used") for path in copies]


def _votes(root: Path, warnings: list[str]) -> dict[str, str]:
    """Read how many annotators chose each primary emotion, by clip in lower case; of a copy without the table nothing, and of a
    table without votes nothing but a warning."""
    path = csv_file.find_nearest(root, DETAILED)
    if path is None:
        return {}
    rows = csv_file.read_rows(path, ["FileName"], optional=["EmoClass_Major", "EmoDetail"])
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        detail = row["EmoDetail"].split(";")
        said = (row["EmoClass_Major"] or (detail[1] if len(detail) > 1 else "")).strip().lower()
        said = EMOTIONS.get(said.upper(), said)
        if said:
            counts.setdefault(Path(row["FileName"]).stem.lower(), Counter())[_NAMED.get(said, "other")] += 1
    if not counts:
        warnings.append(f"{path}: no votes in a column EmoClass_Major or EmoDetail, so clips have none")
    return {name: csv_file.votes(dict(sorted(of.items())), path) for name, of in counts.items()}


def _warnings(clips: Sequence[Utterance]) -> list[str]:
    counts = Counter(u.extra["split_set"] for u in clips)
    unknown = sum(u.speaker == UNKNOWN_SPEAKER for u in clips)
    warnings = [f"{counted(unknown, 'clip')} of unknown speakers: they are only ever trained on"] if unknown else []
    if counts != CLIPS_BY_SPLIT:
        here = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        known = ", ".join(f"{name} {count}" for name, count in CLIPS_BY_SPLIT.items())
        warnings.append(f"clips by Split_Set: {here}; in release {RELEASE}: {known}. Another release, or a partial copy")
    return warnings


def _utterance(row: Mapping[str, str], stem: str, path: Path | None, votes: str) -> Utterance | str:
    """Return the clip that a line of labels describes, or the reason why there is none."""
    if path is None:
        return f"no recording {row['FileName']}"
    emotion, split, gender = row["EmoClass"].upper(), row["Split_Set"].lower(), row["Gender"].lower()
    for column, found, known in (("EmoClass", emotion, EMOTIONS), ("Split_Set", split, SPLITS), ("Gender", gender, GENDERS)):
        if found not in known:
            return f"{stem}: unknown {column} {row[column]!r}; known: {listed(list(known), 10)}"
    try:
        arousal, valence, dominance = (_number(row[column]) for column in ("EmoAct", "EmoVal", "EmoDom"))
    except ValueError as error:
        return f"{stem}: EmoAct, EmoVal and EmoDom must be numbers: {error}"
    speaker, name = row["SpkrID"], NAME.fullmatch(stem)
    return Utterance(
        corpus="msp_podcast",
        utterance_id=stem,
        audio_path=path,
        speaker=speaker,
        emotion=EMOTIONS[emotion],
        gender=GENDERS[gender],
        split=SPLITS[split],
        language="en",
        arousal=arousal,
        valence=valence,
        dominance=dominance,
        extra={"split_set": row["Split_Set"]}
        | ({"podcast": name["podcast"]} if name else {})
        | ({"votes": votes} if votes else {}),
    )


def _number(text: str) -> float | None:
    """Parse a number, None where nothing, or NaN, is written. Raises ValueError for what is no number."""
    value = float(text or "nan")
    return value if math.isfinite(value) else None
