"""The checklist: every parser of the catalogue keeps it, and for every rule there is a parser that is caught."""

# ruff: noqa: F401 - fixtures of other modules, found by the names that they are given here

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from corpora.test_parse_audformat import make as make_audformat
from corpora.test_parse_crema_d import tree as crema_d
from corpora.test_parse_esd import tree as esd
from corpora.test_parse_hf import dataset as hf
from corpora.test_parse_hindi import tree as hindi
from corpora.test_parse_meld import tree as meld
from corpora.test_parse_msp_improv import tree as msp_improv
from corpora.test_parse_msp_podcast import make_release
from corpora.test_parse_ravdess import tree as ravdess
from corpora.test_parse_savee import in_folders
from corpora.test_parse_tess import tree as tess
from corpora.test_parse_urdu import tree as urdu
from corpora.test_parse_urduser import tree as urduser
from corpora.test_parse_wds import tars as webdataset
from fixtures_iemocap import make_iemocap
from trees import clip, macos_note

from ser_hpc.corpora import demo_speech, labels, parser_contract
from ser_hpc.corpora.parse_result import Parser, ParseResult, find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.registry import FORMATS, PARSERS
from ser_hpc.corpora.utterance import Utterance

LABEL_SETS = [labels.load_label_set(path) for path in sorted((Path(__file__).parents[2] / "configs" / "labels").glob("*.yaml"))]


@pytest.fixture
def emodb(tmp_path: Path) -> Path:
    for name in ("wav/03a01Fa.wav", "wav/16b03Ta.wav", "wav/03a01Xa.wav", "other/noise.wav"):
        clip(tmp_path / name, rate=22050)
    macos_note(tmp_path / "wav/03a01Fa.wav")
    return tmp_path


@pytest.fixture
def iemocap(tmp_path: Path) -> Path:
    root = make_iemocap(tmp_path, sessions=(1, 2), turns=2)
    clip(root / "Session1/dialog/wav/Ses01F_impro01.wav")
    clip(root / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F099.wav")
    return root


@pytest.fixture
def savee(tmp_path: Path) -> Path:
    return in_folders(tmp_path)


@pytest.fixture
def msp_podcast(tmp_path: Path) -> Path:
    return make_release(tmp_path, "labels_concensus.csv", "Audio", "Validation")


@pytest.fixture
def iesc(tmp_path: Path) -> Path:
    for name in ("IESC/Speaker-2/Neutral/N1 (2).wav", "IESC/Speaker-1/Anger/A1.wav", "IESC/Speaker-1/Test/T1.wav"):
        clip(tmp_path / name)
    return tmp_path


@pytest.fixture
def kai_indian(tmp_path: Path) -> Path:
    for name in ("Angry_1.wav", "sadness/2.wav", "happy_or_sad.wav"):
        clip(tmp_path / name)
    return tmp_path


@pytest.fixture
def audformat(tmp_path: Path) -> Path:
    return make_audformat(tmp_path)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    clip(tmp_path / "wav/anna.wav")
    (tmp_path / "lunch.csv").write_text("audio,emotion,speaker\nwav/anna.wav,happy,anna\n")
    return tmp_path / "lunch.csv"


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    clip(tmp_path / "wav/anna.wav")
    (tmp_path / "lunch.jsonl").write_text('{"audio": "wav/anna.wav", "emotion": "happy", "speaker": "anna"}\n')
    return tmp_path / "lunch.jsonl"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    demo_speech.make_demo_corpus(tmp_path, clips_per_speaker_and_emotion=1)
    return tmp_path


@pytest.mark.parametrize("name", PARSERS)
def test_every_parser_keeps_every_rule(name: str, request: pytest.FixtureRequest) -> None:
    """On a tree in the corpus's layout with its defects planted; a new corpus needs a fixture here, of its name."""
    kept = parser_contract.check_parser(PARSERS[name], request.getfixturevalue(name), LABEL_SETS, published=name not in FORMATS)
    assert {rule: problems for rule, problems in kept.items() if problems} == {}


# A parser of one's own, and what can be wrong with it.


@pytest.fixture
def lunch(tmp_path: Path) -> Path:
    """Clips of two speakers in folders of their own, and one that is no clip."""
    for name in ("anna/s1_happy.wav", "anna/s2_sad.wav", "bob/s2_sad.wav", "bob/noise.wav"):
        clip(tmp_path / "lunch" / name)
    return tmp_path / "lunch"


def good(root: Path) -> ParseResult:
    """Each file `<text>_<emotion>.wav` in its speaker's folder."""
    files = find_recordings(require_folder(root, "<speaker>/<text>_<emotion>.wav"))
    clips, skipped = parse_files(files, lambda path: read(path) if "_" in path.stem else "no clip")
    return make_result(root, "<speaker>/<text>_<emotion>.wav", clips, skipped)


def read(path: Path, **changes: object) -> Utterance:
    speaker, emotion = path.parent.name, path.stem.split("_")[1]
    return replace(Utterance("lunch", f"{speaker}_{path.stem}", path, speaker, emotion), **changes)


def changed(change: Callable[[ParseResult, Path], ParseResult]) -> Parser:
    return lambda root: change(good(root), root)


def clips_as(change: Callable[[Utterance], Utterance]) -> Parser:
    return lambda root: replace(good(root), utterances=tuple(change(clip) for clip in good(root).utterances))


def listing(every: Callable[[Path], list[Path]]) -> Parser:
    """A parser that finds its files in a way of its own."""
    return lambda root: ParseResult(tuple(read(path) for path in every(root) if path.suffix == ".wav" and "_" in path.stem))


def crash(root: Path) -> ParseResult:
    raise KeyError("F")


def empty_is_fine(root: Path) -> ParseResult:
    return good(root) if any(root.iterdir()) else ParseResult(())


def first_folder_wins(root: Path) -> ParseResult:
    seen: dict[str, Utterance] = {}
    for path in (file for folder in require_folder(root, "").iterdir() for file in find_recordings(folder)):
        if "_" in path.stem:
            seen.setdefault(path.stem, read(path, utterance_id=path.stem))
    return ParseResult(tuple(sorted(seen.values(), key=lambda clip: clip.utterance_id)))


BAD: dict[str, tuple[Parser, str, str]] = {  # the parser, the rule that it breaks, and what is said of it
    "crashes": (crash, parser_contract.READS, "KeyError: 'F', instead of a UserError"),
    "empty emotion": (clips_as(lambda clip: replace(clip, emotion="")), parser_contract.READS, "emotion must not be empty"),
    "unknown gender": (clips_as(lambda clip: replace(clip, gender="f")), parser_contract.READS, "gender is 'f'"),
    "language in words": (
        clips_as(lambda clip: replace(clip, language="English")),
        parser_contract.READS,
        "language is 'English'",
    ),
    "own split": (clips_as(lambda clip: replace(clip, split="training")), parser_contract.READS, "split is 'training'"),
    "dotted id": (clips_as(lambda clip: replace(clip, utterance_id="a.b")), parser_contract.READS, "utterance id 'a.b'"),
    "empty folder": (empty_is_fine, "a missing root", "an empty folder is no UserError, but a result with 0 clips"),
    "missing folder": (empty_is_fine, "a missing root", "does not exist is no UserError, but FileNotFoundError"),
    "unsorted": (listing(lambda root: list(root.rglob("*.wav"))), "do not depend on how folders are listed", "another order"),
    "first of two": (first_folder_wins, "do not depend on how folders are listed", "other files or fields: s2_sad"),
    "one id": (
        clips_as(lambda clip: replace(clip, utterance_id="x")),
        "ids are unique",
        "1 ids stand for more than one clip: x",
    ),
    "long id": (
        clips_as(lambda clip: replace(clip, corpus="c" * 24, utterance_id=f"{clip.utterance_id:_<80}")),
        "ids are unique",
        "3 keys are longer than 95 characters",
    ),
    "two corpora": (clips_as(lambda clip: replace(clip, corpus=clip.speaker)), "ids are unique", "several corpora: anna, bob"),
    "no recording": (
        clips_as(lambda clip: replace(clip, audio_path=clip.audio_path.with_suffix(".mp3"))),
        "of files that are there",
        "3 clips have no recording",
    ),
    "no reason": (
        changed(lambda result, root: replace(result, skipped=((root / "bob/noise.wav", " "),))),
        "whatever is skipped has a reason",
        "1 files are skipped without a reason: .*noise.wav",
    ),
    "dropped": (
        changed(lambda result, root: replace(result, skipped=())),
        "every recording is a clip, or skipped",
        "1 recordings are neither .*noise.wav",
    ),
    "macOS": (
        listing(lambda root: sorted(root.glob("*/*.wav"))),
        "hidden files and what macOS adds",
        "utterance id 'anna_._s1_happy'",
    ),
    "Trash": (
        listing(lambda root: sorted(path for path in root.rglob("*.wav") if path.name[0] != ".")),
        "hidden files and what macOS adds",
        "other files or fields: anna_s1_happy",
    ),
    "doubled": (listing(find_recordings), "a copy of the tree inside itself", "other files or fields: anna_s1_happy"),
    "untold": (good, "the docstring has the sections", "no section Layout, Names, Counts, Defects"),
    "unlabelled": (
        clips_as(lambda clip: replace(clip, emotion=f"very {clip.emotion}")),
        "a label set knows every emotion",
        "no label set knows every emotion of the corpus; the nearest, .*, lacks very happy, very sad",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_parser_does_wrong_is_found_under_its_rule_in_words(name: str, lunch: Path) -> None:
    parse, rule, words = BAD[name]
    broken = {rule: problems for rule, problems in parser_contract.check_parser(parse, lunch, LABEL_SETS).items() if problems}
    found = [problem for name, problems in broken.items() if rule in name for problem in problems]
    assert any(re.search(words, problem) for problem in found), broken


def test_the_parser_without_those_faults_keeps_every_rule_but_on_its_docstring(lunch: Path) -> None:
    """So that each of the faults above is found for itself, and not because everything is."""
    assert [rule for rule, problems in parser_contract.check_parser(good, lunch, LABEL_SETS).items() if problems] == [
        f"the docstring has the sections {', '.join(parser_contract.SECTIONS)}"
    ]


def test_the_corpus_itself_is_left_as_it_was(lunch: Path) -> None:
    before = sorted((str(path), path.stat().st_mtime_ns) for path in lunch.rglob("*"))
    parser_contract.check_parser(good, lunch, LABEL_SETS)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in lunch.rglob("*")) == before
