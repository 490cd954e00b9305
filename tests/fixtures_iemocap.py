"""A small tree in IEMOCAP's exact layout, as the licensed corpus cannot be shipped with the tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000
SCENES = ("impro01", "impro05a", "script01_1", "script01_1b")
EMOTIONS = ("ang", "hap", "exc", "neu", "sad", "fru", "xxx")


def make_iemocap(
    root: Path,
    sessions: Iterable[int] = (1, 2, 3, 4, 5),
    scenes: Iterable[str] = SCENES,
    turns: int = 4,
    seconds: float = 0.3,
    seed: int = 0,
) -> Path:
    """Write dialogues of both actors (`turns` each) and return `root`. Emotions take turns; sounds are noise, each its own.

    In every session the woman wears the markers in the first half of the scenes and the man in the others, so the letter after
    the session's number is the speaker's in half of all names only. Beside the utterances stand what the real corpus holds
    too: header and raters' lines, files of single raters in subfolders, and macOS's `._*` notes.
    """
    random = np.random.default_rng(seed)
    scenes = list(scenes)
    for session in sessions:
        for number, scene in enumerate(scenes):
            marker = "F" if number < (len(scenes) + 1) // 2 else "M"
            _write_dialogue(root / f"Session{session}", f"Ses0{session}{marker}_{scene}", number, turns, seconds, random)
    return root


def _write_dialogue(session: Path, dialogue: str, number: int, turns: int, seconds: float, random: np.random.Generator) -> None:
    wavs = session / "sentences" / "wav" / dialogue
    labels = session / "dialog" / "EmoEvaluation"
    for folder in (wavs, labels / "Categorical"):
        folder.mkdir(parents=True, exist_ok=True)
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for turn in range(turns):
        for k, letter in enumerate("FM"):
            name = f"{dialogue}_{letter}{turn:03d}"
            emotion = EMOTIONS[(2 * turn + k + number) % len(EMOTIONS)]
            start = (2 * turn + k) * seconds
            lines += [
                f"[{start:.4f} - {start + seconds:.4f}]\t{name}\t{emotion}\t[2.5000, 3.0000, 3.5000]",
                "C-E2:\tNeutral;\t()",
                "C-F1:\tNeutral;\t()",
                "A-E3:\tval 3; act 3; dom  3;\t()",
                "",
            ]
            samples = random.normal(0.0, 0.1, int(seconds * RATE_HZ)).clip(-1, 1)
            soundfile.write(wavs / f"{name}.wav", samples, RATE_HZ, subtype="PCM_16")
    (labels / f"{dialogue}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (labels / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07\x00\xff")
    (labels / "Categorical" / f"{dialogue}_e2_cat.txt").write_text(f"{dialogue}_F000 :Neutral; ()\n", encoding="utf-8")
