"""Small corpora of noise, each clip with a sound of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_hpc.corpora.utterance import Utterance

MakeCorpus = Callable[..., list[Utterance]]


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """`make_corpus(sessions, clips)`: that many clips of 0.2 to 0.6 s in each session, as 16 kHz wav; extra fields by name."""

    def make(sessions: int = 3, clips: int = 4, seconds: float = 0.0, **fields: object) -> list[Utterance]:
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        utterances = []
        for session in range(1, sessions + 1):
            for clip in range(clips):
                path = folder / f"s{session}c{clip}.wav"
                samples = rng.integers(-9000, 9000, int(16_000 * (seconds or rng.uniform(0.2, 0.6))), dtype=np.int16)
                soundfile.write(path, samples, 16_000, subtype="PCM_16")
                emotion = ("anger", "joy")[clip % 2]
                utterance = Utterance(
                    "mini", path.stem, path, f"sp{session}{clip % 2}", emotion, session=f"{session}", valence=1.5
                )
                utterances.append(replace(utterance, **fields))
        return utterances

    return make


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file under a folder with its content, and every folder."""
    return lambda root: {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"folder" for path in sorted(root.rglob("*"))
    }
