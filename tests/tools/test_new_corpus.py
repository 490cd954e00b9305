"""new_corpus.md is true: its parser, written out from the page, keeps the checklist, and its commands and policies are real."""

from __future__ import annotations

import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import build_shards
import check_corpus
import pytest
from trees import clip, lfs_pointer, macos_note

from ser_hpc import inspect as command
from ser_hpc.core.errors import UserError
from ser_hpc.corpora import labels, parser_contract, registry
from ser_hpc.corpora.formats.table import COLUMNS
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.shards.quality import DEFAULTS

PAGE = (Path(__file__).parents[2] / "tools" / "new_corpus.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """The page's code blocks of a language, without their indent."""
    return [textwrap.dedent(text) for text in re.findall(rf"^ *```{kind}\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)]


@pytest.fixture
def lunch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's parser, as a module beside the others and in the catalogue."""
    (source,) = blocks("python")
    (tmp_path / "lunch.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("lunch", tmp_path / "lunch.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "lunch", module)
    monkeypatch.setitem(registry.PARSERS, "lunch", module.parse)
    return module


@pytest.fixture
def label_set(tmp_path: Path) -> LabelSet:
    (text,) = blocks("yaml")
    path = tmp_path / "lunch_3.yaml"
    path.write_text(text, encoding="utf-8")
    return labels.load_label_set(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The page's corpus, smaller: in folders, with a copy, a foreign name, a note of macOS and a pointer instead of sound."""
    root = tmp_path / "data" / "lunch"
    for speaker in ("anna", "bob"):
        for emotion in ("hap", "neu", "sad"):
            for sentence in (1, 2):
                clip(root / speaker / f"{speaker}_s{sentence:03d}_{emotion}.wav", rate=44100, channels=2)
    clip(root / "again" / "anna_s001_hap.wav", rate=22050)
    clip(root / "bob" / "bob_s1_hap.wav")
    macos_note(root / "bob" / "bob_s001_hap.wav")
    lfs_pointer(root / "bob" / "bob_s003_sad.wav")
    return root


def test_the_parser_of_the_page_keeps_every_rule(lunch: ModuleType, label_set: LabelSet, tree: Path) -> None:
    kept = parser_contract.check_parser(lunch.parse, tree, [label_set])
    assert len(kept) == 10 and {rule: problems for rule, problems in kept.items() if problems} == {}


def test_it_reads_what_the_page_says(lunch: ModuleType, tree: Path) -> None:
    result = lunch.parse(tree)
    first = result.utterances[0]
    assert (first.utterance_id, first.speaker, first.gender, first.text_id) == ("anna_s001_hap", "anna", "female", "s001")
    assert len(result.utterances) == 13 and {path.name for path, _ in result.skipped} == {"anna_s001_hap.wav", "bob_s1_hap.wav"}
    assert "emotion hap: 4 clips here, 200 in the published corpus" in result.warnings


def test_the_commands_of_the_page_run_and_say_what_the_page_promises(
    lunch: ModuleType, tree: Path, tmp_path: Path, label_set: LabelSet, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the tree to folds, which two speakers do not allow."""
    assert check_corpus.main(["lunch", str(tree)]) == 0
    assert "13 clips of 2 speakers; hap 4, neu 4, sad 5" in capsys.readouterr().out
    shards = tmp_path / "shards"
    with pytest.raises(UserError, match=r"git-lfs pointer(.|\n)*--on undecodable=drop"):
        pack(tree, shards)
    pack(tree, shards, "--on", "undecodable=drop")
    chosen = ["--labels", str(tmp_path / "lunch_3.yaml")]
    assert command.main([str(shards), *chosen]) == 0
    assert "undecodable" in capsys.readouterr().out
    assert command.main([str(shards), *chosen, "--folds", "speaker_groups"]) == 1
    assert "These folds are not sound" in capsys.readouterr().out


def test_the_same_parser_anywhere_is_checked_and_packed_by_the_pages_commands(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_corpus.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    given = re.findall(r"^    python tools/(\w+)\.py my_corpus:parse (.*)$", PAGE, re.MULTILINE)
    assert given == [("check_corpus", "/data/lunch"), ("build_shards", "/data/lunch /scratch/shards/lunch")]
    assert check_corpus.main(["my_corpus:parse", str(tree)]) == 0
    assert "13 clips of 2 speakers; hap 4, neu 4, sad 5" in capsys.readouterr().out
    arguments = ["my_corpus:parse", str(tree), str(tmp_path / "shards"), "--workers", "1", "--on", "undecodable=drop"]
    assert build_shards.pack.main(arguments) == 0


def pack(tree: Path, shards: Path, *more: str) -> None:
    assert build_shards.pack.main(["lunch", str(tree), str(shards), "--workers", "1", *more]) == 0


def test_the_table_of_policies_and_the_table_of_columns_are_those_of_the_code() -> None:
    told = dict(re.findall(r"^ *\| `(\w+)` \| [^|]+ \| (drop|keep|fail) \|$", PAGE, re.MULTILINE))
    assert told == dict(DEFAULTS)
    rows = re.findall(r"^\| (`.*`) \| (?:required|optional) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert named == {*COLUMNS, "extra.NAME"}


def test_every_file_and_option_that_the_page_names_is_there() -> None:
    root = Path(__file__).parents[2]
    for name in re.findall(r"tools/\w+\.py", PAGE):
        assert (root / name).is_file(), name
    for name in re.findall(r"`((?:test_)?[a-z_]+\.py)`", PAGE):
        assert name == "test_parse_lunch.py" or list(root.glob(f"*/**/{name}")), name
