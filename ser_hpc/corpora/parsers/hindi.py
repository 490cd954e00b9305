"""Hindi ("Speech Emotion Recognition (Hindi)", Kaggle 2021): acted Hindi, eight speakers, set sentences.

Layout   ROOT/my Dataset/<speaker>/<session>/<emotion>/*.wav: the speaker is the second folder above the emotion's.
Names    The third of the fields between dots, up to a "-", is the emotion: `<?>.<?>.<emotion>-<?>.wav`, as in 1.2.happy-3.wav.
Counts   3,200 clips in 8 emotions; a public description says 8 speakers, 5 sessions each and 10 sentences an emotion.
Defects  Words are misspelt: happpy, dusgust. Nobody could confirm what the other fields of a name are, nor look at the whole
         corpus here: it is read loosely (the emotion from the name, else from the folder; a clip on which they disagree is left
         out), clips without a speaker's folder can only be trained on, and `text_id` is empty though all say the same
         sentences. Compare the counts per speaker with the folders before trusting folds over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ser_hpc.core.errors import counted, listed
from ser_hpc.corpora.parse_result import ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.spelling import emotion_folder, plain_id, typo_warnings, word_in
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER, Utterance

LAYOUT = "<speaker>/<session>/<emotion>/<clip>.wav, with the emotion in the name too, as in 1.2.happy-3.wav"
TYPOS = {"happpy": "happy", "dusgust": "disgust"}
SPELLINGS = TYPOS | {
    "anger": "anger",
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happy",
    "neutral": "neutral",
    "sad": "sad",
    "sarcastic": "sarcastic",
    "surprise": "surprise",
}
CLIPS, SPEAKERS = 3200, 8
LOOSE = "nobody could confirm this corpus's names: speakers are taken from the folders, and which sentence is said is not known"


def parse(root: Path) -> ParseResult:
    """Return every clip of the corpus under `root`. Raises UserError where `root` is no folder or holds no clip."""
    clips, skipped = parse_files(find_recordings(require_folder(root, LAYOUT)), lambda path: _utterance(path, root))
    result = make_result(root, LAYOUT, clips, skipped, {"corpus": {"hindi": CLIPS}})
    return result.with_warnings(_warnings(root, result.utterances))


def _warnings(root: Path, clips: Sequence[Utterance]) -> list[str]:
    spelt = {word for clip in clips for word in _spellings(clip.audio_path, emotion_folder(clip.audio_path, root, SPELLINGS))}
    warnings = typo_warnings(spelt, SPELLINGS, TYPOS)
    if (found := len({clip.speaker for clip in clips})) != SPEAKERS:
        warnings.append(f"{found} speakers here, {SPEAKERS} in the description of the published corpus")
    if unknown := sum(clip.speaker == UNKNOWN_SPEAKER for clip in clips):
        warnings.append(f"{counted(unknown, 'clip has', 'clips have')} no speaker's folder: they can only be trained on")
    return [*warnings, LOOSE]


def _spellings(path: Path, folder: Path | None) -> set[str]:
    """Return the emotion as spelt in a file's name and in its folder's, where they say one."""
    return {word for word in (_word_of_name(path), word_in(folder.name, SPELLINGS) if folder else "") if word}


def _word_of_name(path: Path) -> str:
    """Return the emotion as spelt in a file's name; "" where its third field is none."""
    fields = path.stem.split(".")
    return word_in(fields[2].split("-")[0], SPELLINGS) if len(fields) > 2 else ""


def _utterance(path: Path, root: Path) -> Utterance | str:
    """Return the clip whose emotion a name and a folder say, or the reason why it is none."""
    folder = emotion_folder(path, root, SPELLINGS)
    spelt = _spellings(path, folder)
    emotions = {SPELLINGS[word] for word in spelt}
    if len(emotions) != 1:
        reason = f"name and folder disagree: {listed(sorted(spelt))}" if spelt else "neither name nor folder says an emotion"
        return f"{reason}; known: {listed(list(SPELLINGS), 12)}"
    (emotion,) = emotions
    above = folder.relative_to(root).parts[:-1] if folder else ()
    speaker, session = (name.lower() for name in above[-2:]) if len(above) >= 2 else (UNKNOWN_SPEAKER, "")
    return Utterance(
        corpus="hindi",
        utterance_id=plain_id(speaker, session, emotion, path.stem),
        audio_path=path,
        speaker=speaker,
        emotion=emotion,
        language="hi",
        extra={"recording_session": session} if session else {},
    )
