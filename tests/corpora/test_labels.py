"""Label sets: any text that clips carry may be read, each corpus in its own way, and nothing is dropped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from rows import table

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.corpora.parsers import crema_d

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"


def test_a_corpus_of_its_own_meaning_goes_before_the_common_one(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("classes: [happy, sad]\nmap: {joy: happy, emodb: {joy: null, T: sad}}\n")
    rows = [{"corpus": "emodb", "emotion": "joy"}, {"corpus": "tess", "emotion": "joy"}, {"corpus": "emodb", "emotion": "T"}]
    assert labels.load_label_set(path).targets(table(rows)).tolist() == [labels.DROPPED, 0, 1]
    with pytest.raises(UserError, match="'T' of tess"):
        labels.load_label_set(path).targets(table([{"corpus": "tess", "emotion": "T"}]))


def test_crema_d_has_21_emotions_by_level() -> None:
    twenty_one = labels.load_label_set(CONFIGS / "crema_d_21.yaml")
    levels = {"neutral": ["unspecified"]}
    rows = [
        {"emotion": emotion, "intensity": level}
        for emotion in crema_d.CLIPS_BY_EMOTION
        for level in levels.get(emotion, list(crema_d.CLIPS_BY_LEVEL))
    ]
    assert sorted(twenty_one.targets(table(rows)).tolist()) == list(range(21))


def test_extra_fields_can_be_read_and_unknown_columns_are_named() -> None:
    rows = [{"extra": '{"perceived_voice": "sad"}'}, {"extra": ""}]
    perceived = LabelSet("voice", ("happy", "sad"), {"": None}, columns=("perceived_voice",))
    assert perceived.targets(table(rows)).tolist() == [1, labels.DROPPED]
    with pytest.raises(UserError, match=r"no column 'perceived_vioce'.*perceived_voice"):
        LabelSet("typo", ("a", "b"), {}, columns=("perceived_vioce",)).targets(table(rows))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes: [a, b]\nmap: {x: c, emodb: {y: d}}", ["map.x: 'c'", "map.emodb.y: 'd'"]),
        ("classes: [a, b]\ncolumn: {a: b}", ["column must be"]),
        ("classes: [a, b]\ncolum: emotion", ["unknown key 'colum'"]),
    ],
)
def test_mistakes_are_told_together(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        labels.load_label_set(path)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_label_set_of_the_project_is_sound(path: Path) -> None:
    assert labels.load_label_set(path).name == path.stem
