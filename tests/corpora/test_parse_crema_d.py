"""CREMA-D: intended and perceived labels stand side by side, level and people have fields of their own, old copies are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import clip, lfs_pointer, macos_note

from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels
from ser_hpc.corpora.parse_result import ParseResult
from ser_hpc.corpora.parsers import crema_d
from ser_hpc.shards.audio import BadClipError, read_header

CONFIGS = Path(__file__).parents[2] / "configs" / "labels"
PEOPLE = '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Caucasian","Not Hispanic"\n'
VOTES = (
    '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"\n'
    '"1","1001_IEO_ANG_HI","A","63.5","A","68.25","A","73.2"\n'
    '"2","1001_TIE_NEU_XX","N","77.8","N","54.75","D:N","77.6"\n'
    '"3","1002_IEO_HAP_LO","F:H:N","57:50:41","H","61.6","N","58.88"\n'
)

TABULATED = (
    '"","A","D","F","H","N","S","fileName","numResponses"\n'
    '"100010",2,6,0,0,1,0,"1001_IEO_ANG_HI",9\n'
    '"200010",9,0,0,0,0,0,"1001_IEO_ANG_HI",9\n'
    '"300010",7,3,0,0,0,0,"1001_IEO_ANG_HI",10\n'
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's layout with what is wrong in real copies."""
    root = tmp_path_factory.mktemp("crema_d") / "CREMA-D"
    audio = root / "AudioWAV"
    for name in ("1001_IEO_ANG_HI", "1001_TIE_NEU_XX", "1002_IEO_HAP_LO", "1040_ITH_SAD_X"):
        clip(audio / f"{name}.wav")
    lfs_pointer(audio / "1003_DFA_FEA_XX.wav")
    macos_note(audio / "1001_IEO_ANG_HI.wav")
    for name in ("1001_IEO_ANG_HI", "1002_IEO_HAP_LO"):
        clip(root / "AudioMP3" / f"{name}.mp3", subtype="MPEG_LAYER_III")
    clip(root / "copy" / "AudioWAV" / "1001_IEO_ANG_HI.WAV")
    clip(root / "copy" / "AudioWAV" / "1002_IEO_HAP_LO.flac", rate=48000, channels=2, subtype="PCM_24")
    for name in ("1001_IEO_JOY_XX", "1001_ABC_SAD_XX", "2001_IEO_SAD_XX", "1001_IEO_SAD", "silence"):
        clip(audio / f"{name}.wav")
    (root / "VideoDemographics.csv").write_text(PEOPLE)
    (root / "processedResults").mkdir()
    (root / "processedResults" / "summaryTable.csv").write_text(VOTES)
    (root / "processedResults" / "tabulatedVotes.csv").write_text(TABULATED)
    return root


@pytest.fixture(scope="module")
def parsed(tree: Path) -> ParseResult:
    return crema_d.parse(tree)


def test_each_clip_is_found_once_with_what_its_name_says(parsed: ParseResult) -> None:
    rows = [(u.utterance_id, u.speaker, u.gender, u.emotion, u.intensity, u.text_id) for u in parsed.utterances]
    assert rows == [
        ("1001_IEO_ANG_HI", "1001", "male", "anger", "high", "IEO"),
        ("1001_TIE_NEU_XX", "1001", "male", "neutral", "unspecified", "TIE"),
        ("1002_IEO_HAP_LO", "1002", "female", "happy", "low", "IEO"),
        ("1003_DFA_FEA_XX", "1003", "female", "fear", "unspecified", "DFA"),
        ("1040_ITH_SAD_XX", "1040", "male", "sad", "unspecified", "ITH"),
    ]
    assert {u.language for u in parsed.utterances} == {"en"}


def test_perceived_labels_stand_beside_the_intended_one_and_ties_are_named(parsed: ParseResult) -> None:
    """`emotion` never changes with the table: a label set chooses."""
    extra = {u.utterance_id: {k: v for k, v in u.extra.items() if not k.startswith("votes")} for u in parsed.utterances}
    people = {"age": "51", "race": "Caucasian", "ethnicity": "Not Hispanic"}
    assert extra["1001_IEO_ANG_HI"] == people | {"perceived_multimodal": "anger", "perceived_voice": "anger"}
    tied = {"perceived_multimodal": "tie", "tied_multimodal": "disgust:neutral", "perceived_voice": "neutral"}
    assert extra["1001_TIE_NEU_XX"] == people | tied
    assert extra["1002_IEO_HAP_LO"]["tied_voice"] == "fear:happy:neutral"
    assert extra["1003_DFA_FEA_XX"] == {}


def test_warnings_say_which_label_is_used_how_far_listeners_agree_and_what_is_read_as_what(parsed: ParseResult) -> None:
    told = "\n".join(parsed.warnings)
    assert "emotion is the intended label" in told
    assert "perceived_multimodal (the same for 20% of the clips) and perceived_voice (40%)" in told
    assert "2 clips are not in summaryTable.csv" in told
    assert "1040_ITH_SAD_X.wav is read as 1040_ITH_SAD_XX" in told
    assert "emotion anger: 1 clip here, 1,271 in the published corpus" in told
    assert "level high: 1 clip here, 455 in the published corpus" in told


def test_copies_mp3s_and_foreign_names_are_skipped_with_their_reason_and_macos_notes_are_no_files(parsed: ParseResult) -> None:
    reasons = {f"{path.parent.parent.name}/{path.name}": reason for path, reason in parsed.skipped}
    assert reasons.keys() == {
        *(f"CREMA-D/{name}" for name in ("1001_IEO_ANG_HI.mp3", "1002_IEO_HAP_LO.mp3", "1001_IEO_JOY_XX.wav")),
        *(f"CREMA-D/{name}" for name in ("1001_ABC_SAD_XX.wav", "2001_IEO_SAD_XX.wav", "1001_IEO_SAD.wav", "silence.wav")),
        *("copy/1001_IEO_ANG_HI.WAV", "copy/1002_IEO_HAP_LO.flac"),
    }
    assert "MP3" in reasons["CREMA-D/1001_IEO_ANG_HI.mp3"]
    assert "unknown emotion 'JOY'; known: ANG" in reasons["CREMA-D/1001_IEO_JOY_XX.wav"]
    assert "unknown sentence 'ABC'" in reasons["CREMA-D/1001_ABC_SAD_XX.wav"]
    assert "unknown actor '2001'" in reasons["CREMA-D/2001_IEO_SAD_XX.wav"]
    assert "the same clip as" in reasons["copy/1002_IEO_HAP_LO.flac"]
    assert any("2 clips occur again" in text and "1 of them has another size" in text for text in parsed.warnings)


def test_a_git_lfs_pointer_stays_a_clip_until_packing_says_what_it_is(parsed: ParseResult) -> None:
    """A parser reads no sound: nothing of a downloaded zip is lost in silence, and packing names the remedy."""
    pointer = next(u for u in parsed.utterances if u.utterance_id == "1003_DFA_FEA_XX")
    with pytest.raises(BadClipError, match="git-lfs pointer"):
        read_header(pointer.audio_path)


def test_without_its_tables_the_corpus_is_read_and_what_is_missing_is_told(tmp_path: Path) -> None:
    clip(tmp_path / "1001_IEO_ANG_HI.wav")
    result = crema_d.parse(tmp_path)
    assert result.utterances[0].gender == "male" and result.utterances[0].extra == {}
    assert any("no VideoDemographics.csv" in text for text in result.warnings)
    assert any("summaryTable.csv with the perceived ones is not in this copy" in text for text in result.warnings)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("MultiModalVote", "Vote", "no column MultiModalVote"), ('"D:N"', '"D:Q"', "unknown emotion 'Q' in the vote 'D:Q'")],
)
def test_a_damaged_table_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    clip(tmp_path / "1001_IEO_ANG_HI.wav")
    (tmp_path / "summaryTable.csv").write_text(VOTES.replace(old, new))
    with pytest.raises(UserError, match=message):
        crema_d.parse(tmp_path)


def test_known_counts_agree_with_each_other_and_with_the_label_sets() -> None:
    assert sum(crema_d.CLIPS_BY_EMOTION.values()) == sum(crema_d.CLIPS_BY_LEVEL.values()) == 7442
    assert len(crema_d.ACTORS) == 91 and len(crema_d.WOMEN) == 43 and crema_d.WOMEN < crema_d.ACTORS
    assert set(labels.load_label_set(CONFIGS / "crema_d_6.yaml").classes) == set(crema_d.EMOTIONS.values())
    perceived = labels.load_label_set(CONFIGS / "crema_d_6_perceived.yaml")
    assert perceived.columns == ("perceived_multimodal",)
    assert {*perceived.classes, *perceived.mapping} == {*crema_d.VOTES.values(), "tie"}


def test_every_listeners_vote_is_a_soft_label(parsed: ParseResult) -> None:
    """By voice and by both; the face alone, 200010, is no label of speech."""
    of = {u.utterance_id: u.extra for u in parsed.utterances}
    assert of["1001_IEO_ANG_HI"]["votes_voice"] == "anger=2 disgust=6 neutral=1"
    assert of["1001_IEO_ANG_HI"]["votes_multimodal"] == "anger=7 disgust=3"
    assert not any("face" in name for name in of["1001_IEO_ANG_HI"])
    assert "votes_voice" not in of["1001_TIE_NEU_XX"]


def test_votes_that_are_no_numbers_are_refused(tree: Path, tmp_path: Path) -> None:
    clip(tmp_path / "AudioWAV" / "1001_IEO_ANG_HI.wav")
    (tmp_path / "tabulatedVotes.csv").write_text(TABULATED.replace(",2,6", ",2.5,6"))
    with pytest.raises(UserError, match=r"tabulatedVotes.csv: votes must be whole numbers; not anger '2.5'"):
        crema_d.parse(tmp_path)


def test_votes_of_a_table_saved_anew_and_without_the_summary(tmp_path: Path) -> None:
    """3.0 is 3; what most listeners perceived is not said to agree nowhere, where the copy does not say it."""
    clip(tmp_path / "AudioWAV" / "1001_IEO_ANG_HI.wav")
    (tmp_path / "tabulatedVotes.csv").write_text(TABULATED.replace(",2,6", ",2.0,6"), encoding="utf-8-sig")
    parsed = crema_d.parse(tmp_path)
    assert "anger=2 disgust=6" in " ".join(parsed.utterances[0].extra.values())
    assert any("summaryTable.csv with the perceived ones is not in this copy" in warning for warning in parsed.warnings)
    assert not any("%" in warning or "no perceived label" in warning for warning in parsed.warnings)
