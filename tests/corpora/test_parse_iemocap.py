"""IEMOCAP: who speaks is read from the right field, labels from the right files, and nothing is dropped in silence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fixtures_iemocap import EMOTIONS, SCENES, make_iemocap
from rows import table

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parsers import iemocap

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_iemocap(tmp_path_factory.mktemp("iemocap"))


def label_file(root: Path) -> Path:
    return root / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"


def edited(tmp_path: Path, old: str, new: str) -> Path:
    """A one-session tree whose first label file has `old` replaced by `new`."""
    root = make_iemocap(tmp_path, sessions=[1])
    text = label_file(root).read_text()
    assert old in text
    label_file(root).write_text(text.replace(old, new, 1))
    return root


def test_speaker_is_the_letter_of_the_last_field_not_who_wore_the_markers(tree: Path) -> None:
    """The trap: `Ses01F_impro01_M003` is spoken by the man of session 1."""
    clips = {u.utterance_id: u for u in iemocap.parse(tree).utterances}
    man = clips["Ses01F_impro01_M003"]
    assert (man.speaker, man.session, man.gender) == ("Ses01M", "Ses01", "male")
    woman = clips["Ses04M_script01_1_F000"]
    assert (woman.speaker, woman.session, woman.gender) == ("Ses04F", "Ses04", "female")
    assert all(u.speaker[-1] == u.utterance_id.rsplit("_", 1)[1][0] for u in clips.values())
    assert any(u.speaker[-1] != u.utterance_id[5] for u in clips.values()), "the tree must hold names that set the trap"


def test_every_utterance_of_the_tree_is_found_once(tree: Path) -> None:
    result = iemocap.parse(tree)
    assert len(result.utterances) == 5 * len(SCENES) * 4 * 2 and result.skipped == ()
    assert set(Counter(u.speaker for u in result.utterances).values()) == {len(SCENES) * 4}
    assert {u.emotion for u in result.utterances} == set(EMOTIONS)
    assert all(u.audio_path.is_file() and u.audio_path.stem == u.utterance_id for u in result.utterances)


def test_dimensions_are_valence_activation_dominance_in_that_order(tree: Path) -> None:
    clip = iemocap.parse(tree).utterances[0]
    assert (clip.valence, clip.arousal, clip.dominance) == (2.5, 3.0, 3.5)


def test_scripts_share_a_text_id_over_sessions_and_improvised_clips_have_none(tree: Path) -> None:
    for clip in iemocap.parse(tree).utterances:
        assert clip.text_id == ("" if "impro" in clip.utterance_id else "script01_1")


def test_a_partial_copy_is_told_with_both_numbers(tree: Path) -> None:
    warnings = iemocap.parse(tree).warnings
    assert "session Ses01: 32 clips here, 1,819 in the published corpus" in warnings
    assert any(text.startswith("emotion sur: 0 clips here, 107") for text in warnings)


def test_known_counts_agree_with_each_other() -> None:
    assert sum(iemocap.CLIPS_BY_SESSION.values()) == sum(iemocap.CLIPS_BY_EMOTION.values()) == 10_039


def test_label_set_knows_every_code_and_gives_the_published_four_class_counts() -> None:
    counts = iemocap.CLIPS_BY_EMOTION
    four = labels.load_label_set(CONFIGS / "iemocap_4.yaml")
    targets = four.targets(table([{"emotion": code} for code, clips in counts.items() for _ in range(clips)]))
    found = {name: int((targets == i).sum()) for i, name in enumerate(four.classes)}
    assert found == {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("\tang\t", "\tmad\t", "unknown emotion 'mad'"),
        ("Ses01F_impro01_M003", "Ses01F_impro02_M003", "not the name of an utterance of dialogue 'Ses01F_impro01'"),
        ("Ses01F_impro01_M003", "Ses01F_impro01_X003", "not the name of an utterance"),
        ("Ses01F_impro01_M003", "Ses01F_impro01_M103", "no recording"),
        ("[2.5000, 3.0000, 3.5000]", "[2.5000, 3.0000]", "not a label line"),
        ("C-E2:", "Q-E2:", "not a label line"),
    ],
)
def test_what_cannot_be_read_is_skipped_with_file_line_and_reason(tmp_path: Path, old: str, new: str, reason: str) -> None:
    root = edited(tmp_path, old, new)
    result = iemocap.parse(root)
    (path, text), *recordings = result.skipped
    assert {reason for _, reason in recordings} <= {"no line of labels is about this recording"} and len(recordings) <= 1
    assert path == label_file(root) and text.startswith("line ") and reason in text
    assert len(result.utterances) == 32 - (old != "C-E2:")


def test_an_utterance_labelled_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be unique.*Ses01F_impro01_F003"):
        iemocap.parse(edited(tmp_path, "Ses01F_impro01_M003", "Ses01F_impro01_F003"))


@pytest.mark.parametrize("folder", ["nowhere", "Session1", ""])
def test_a_wrong_folder_is_refused_with_the_layout_expected(tmp_path: Path, folder: str) -> None:
    (tmp_path / "Session1").mkdir()
    with pytest.raises(UserError, match="EmoEvaluation"):
        iemocap.parse(tmp_path / folder)
