"""Know public checkpoints that have learnt from the corpora that people test on: a score of one on its corpus is no test.

Each line is from the checkpoint's own page or its authors' paper: its name on the Hugging Face hub, and the corpora that it was
trained or tuned on. Weights in a folder are known by `_name_or_path` in their config.json, and by the folder's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ser_hpc.core.errors import listed
from ser_hpc.core.home import expand_home

_ENGLISH_ACTED = ("ravdess", "savee", "tess")
_EMOTION2VEC = ("iemocap", "meld", "cmu_mosei", "mead", "msp_podcast")
# A name that ends in * stands for all that begin so.
CHECKPOINTS: dict[str, tuple[str, ...]] = {
    "superb/wav2vec2-base-superb-er": ("iemocap",),
    "superb/wav2vec2-large-superb-er": ("iemocap",),
    "superb/hubert-base-superb-er": ("iemocap",),
    "superb/hubert-large-superb-er": ("iemocap",),
    "speechbrain/emotion-recognition-wav2vec2-IEMOCAP": ("iemocap",),
    "ehcalabres/wav2vec2-lg-xlsr-en-speech-emotion-recognition": ("ravdess",),
    "r-f/wav2vec-english-speech-emotion-recognition": _ENGLISH_ACTED,
    "firdhokk/speech-emotion-recognition-with-openai-whisper-large-v3": (*_ENGLISH_ACTED, "urdu"),
    "firdhokk/speech-emotion-recognition-with-facebook-wav2vec2-large-xlsr-53": (*_ENGLISH_ACTED, "urdu"),
    "AreejB/wav2vec2-xlsr-english-speech-emotion-recognition": ("ravdess",),
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": ("msp_podcast",),
    "3loi/SER-Odyssey-Baseline-*": ("msp_podcast",),
    "padmalcom/wav2vec2-large-emotion-detection-german": ("emodb",),
    "m3hrdadfi/wav2vec2-xlsr-greek-speech-emotion-recognition": ("aesdd",),
    "m3hrdadfi/wav2vec2-xlsr-persian-speech-emotion-recognition": ("shemo",),
    "m3hrdadfi/hubert-base-persian-speech-emotion-recognition": ("shemo",),
    # Pre-trained on unlabelled speech of these corpora; the later ones tuned on EmoBox, which holds many more, with labels.
    "emotion2vec/emotion2vec_base*": _EMOTION2VEC,
    "emotion2vec/emotion2vec_plus*": (*_EMOTION2VEC, "crema_d", "emodb", "esd", "urdu", *_ENGLISH_ACTED),
}
_LONG = 5  # letters of a corpus's name that are not part of another word by chance
_EMOTIONS = {
    *("ang", "anger", "angry", "hap", "happy", "happiness", "sad", "sadness", "fear", "fearful", "disgust", "surprise"),
    *("arousal", "valence", "dominance"),
}


def contamination(weights: str | None, tested: Iterable[str]) -> str | None:
    """Say in a sentence that weights have learnt from a corpus that is tested, or may have; None where nothing is known of it.

    `weights`: as `model.weights` names them; `tested`: names of corpora.
    """
    if not weights:
        return None
    config = read_config(expand_home(weights))
    names = [weights, *([str(config["_name_or_path"])] if config.get("_name_or_path") else [])]
    corpora = sorted(set(tested))
    for name in names:
        if (known := _find(name)) is not None:
            checkpoint, trained_on = known
            if shared := [corpus for corpus in corpora if any(_is_same(corpus, other) for other in trained_on)]:
                return (
                    f"{checkpoint} was trained on {listed(trained_on, 12)}, and {listed(shared)} is tested here: it may have "
                    "learnt from these very test clips."
                )
            return None
    for name in names:
        if shared := [corpus for corpus in corpora if _names(name, corpus)]:
            return f"The name of the weights, {name}, says {listed(shared)}, which is tested here: have they learnt from it?"
    if emotions := _emotions_of(config):
        return (
            f"The weights in {weights} were tuned for emotion before ({listed(emotions, 4)}), on what corpus is not known: not "
            f"on {listed(corpora)}?"
        )
    return None


def _find(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Find the checkpoint that a name on the hub, a folder's name or a cache's (`models--owner--name`) stands for."""
    cached = re.search(r"models--[^/]+?--([^/]+)", name)
    last = (cached[1] if cached else name.rstrip("/").rpartition("/")[2]).lower()
    for checkpoint, corpora in CHECKPOINTS.items():
        model = checkpoint.lower().partition("/")[2]  # whoever has a copy of it
        if last.startswith(model[:-1]) if model.endswith("*") else last == model:
            return checkpoint.rstrip("*-"), corpora
    return None


def _is_same(corpus: str, known: str) -> bool:
    """Tell whether a corpus, as its packer named it, is the known one: `iemocap_4` is IEMOCAP."""
    one, other = _bare(corpus), _bare(known)
    return one == other or (len(other) >= _LONG and other in one)


def _names(weights: str, corpus: str) -> bool:
    bare = re.sub(r"\d+$", "", _bare(corpus))
    return len(bare) >= _LONG and bare in _bare(weights.rstrip("/").rpartition("/")[2])


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's config.json; nothing, where there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
    return {}


def _emotions_of(config: dict[str, Any]) -> list[str]:
    labels = config.get("id2label")
    named = [str(label) for label in labels.values()] if isinstance(labels, dict) else []
    return named if sum(label.lower() in _EMOTIONS for label in named) > 1 else []
