"""The label sets over all corpora know every word that any corpus of the project uses, and mean by it what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from ser_hpc.corpora import demo_speech, labels
from ser_hpc.corpora.parsers import (
    crema_d,
    emodb,
    esd,
    hindi,
    iemocap,
    iesc,
    kai_indian,
    meld,
    msp_improv,
    msp_podcast,
    ravdess,
    savee,
    tess,
    urdu,
    urduser,
)
from ser_hpc.corpora.registry import PARSERS

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"
WORDS = {
    "crema_d": crema_d.EMOTIONS.values(),
    "demo": demo_speech.MANNERS,
    "emodb": emodb.EMOTIONS.values(),
    "esd": esd.EMOTIONS,
    "hindi": hindi.SPELLINGS.values(),
    "iemocap": iemocap.CLIPS_BY_EMOTION,
    "iesc": iesc.SPELLINGS.values(),
    "kai_indian": kai_indian.SPELLINGS.values(),
    "meld": meld.EMOTIONS,
    "msp_improv": msp_improv.EMOTIONS.values(),
    "msp_podcast": msp_podcast.EMOTIONS.values(),
    "ravdess": ravdess.EMOTIONS.values(),
    "savee": savee.EMOTIONS.values(),
    "tess": tess.EMOTIONS.values(),
    "urdu": urdu.EMOTIONS.values(),
    "urduser": urduser.EMOTIONS,
}
FORMATS = {"csv", "jsonl", "hf", "audformat", "webdataset"}  # their words are their users'


def meaning(name: str) -> dict[str, str | None]:
    found = labels.load_label_set(CONFIGS / f"{name}.yaml")
    return {name: name for name in found.classes} | found.mapping


@pytest.mark.parametrize("name", ["union_6", "union_7"])
def test_every_word_of_every_corpus_is_known(name: str) -> None:
    assert set(PARSERS) - FORMATS == set(WORDS), "a new corpus belongs into this test, and its words into the union sets"
    unknown = {corpus: set(words) - set(meaning(name)) for corpus, words in WORDS.items()}
    assert not any(unknown.values()), unknown


def test_no_word_is_known_that_no_corpus_uses() -> None:
    used = {word for words in WORDS.values() for word in words}
    assert set(meaning("union_7")) <= used


def test_words_begin_as_their_classes_do_or_are_known_to_differ() -> None:
    """A slip of the pen in the map would put one emotion's clips under another."""
    other = {"joy": "happy", "exc": "happy", "pleasant_surprise": "surprise"}
    for word, name in meaning("union_7").items():
        assert name is None or other.get(word) == name or word[:2] == name[:2], (word, name)


def test_the_six_are_the_seven_without_surprise() -> None:
    seven = {word: None if name == "surprise" else name for word, name in meaning("union_7").items()}
    assert meaning("union_6") == seven


def test_every_corpus_gives_clips_to_the_four_usual_classes() -> None:
    kept = {corpus: {meaning("union_6")[word] for word in words} - {None} for corpus, words in WORDS.items()}
    assert all({"angry", "happy", "neutral", "sad"} <= found for found in kept.values()), kept
