"""A parser from outside the package: `module:function` is packed like any corpus, and its mistakes are told with their line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT
from trees import clip

from ser_hpc import pack
from ser_hpc.core.errors import UserError
from ser_hpc.corpora import registry
from ser_hpc.shards.index import ShardIndex

SOURCE = '''"""Clips `<speaker>_<emotion>.wav`."""

from ser_hpc.corpora.parse_result import find_recordings, make_result, parse_files, require_folder
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "<speaker>_<emotion>.wav"


class Noted(Utterance):
    """Of a class that worker processes must find too."""


def parse(root):
    return make_result(root, LAYOUT, *parse_files(find_recordings(require_folder(root, LAYOUT)), read))


def read(path):
    speaker, emotion = path.stem.split("_")
    return Noted("outside", path.stem, path, speaker, emotion)
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder outside the package with a parser in it, in which commands are started; its modules are forgotten again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_corpus.py").write_text(SOURCE)
    for name in ("anna_happy", "anna_sad", "bob_happy", "bob_sad"):
        clip(tmp_path / "data" / f"{name}.wav")
    return tmp_path


@pytest.mark.parametrize("how", ["-m", "script", "installed"])
def test_it_is_packed_from_a_folder_of_its_own_by_several_processes(place: Path, how: str) -> None:
    """Started in that folder by either command, or from elsewhere where the module is installed."""
    command = {"-m": ["-m", "ser_hpc.pack"]}.get(how, [str(ROOT / "tools" / "build_shards.py")])
    environment, folder = dict(os.environ), place
    if how == "installed":
        environment["PYTHONPATH"], folder = str(place), place / "data"
    run = subprocess.run(
        [sys.executable, *command, "my_corpus:parse", str(place / "data"), str(place / "out"), "--workers", "2"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert ShardIndex.load(place / "out").metadata.utterance_id.tolist() == ["anna_happy", "anna_sad", "bob_happy", "bob_sad"]


def test_beside_other_corpora_it_has_a_folder_of_its_own(place: Path) -> None:
    demo = place / "more"
    clip(demo / "carl_sad.wav")
    (place / "other.py").write_text(SOURCE.replace('"outside"', '"other"'))
    what = ["my_corpus:parse", str(place / "data"), "other:parse", str(demo), str(place / "out"), "--workers", "1"]
    assert pack.main(what) == 0
    assert {path.name for path in (place / "out").iterdir()} == {"outside", "other"}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (SOURCE.replace("split", "spilt"), r"AttributeError: .*spilt.*my_corpus\.py:18, in read"),
        (SOURCE.replace("def parse(root):", "def parse():"), r"my_corpus:parse: TypeError: parse\(\) takes 0 positional"),
        (SOURCE.replace("def read", "def read read"), r"SyntaxError: .*my_corpus\.py:17"),
        (SOURCE.replace("LAYOUT = ", "LAYOUT = 1 / 0 # "), r"ZeroDivisionError: .*my_corpus\.py:6"),
        ("import no_such_package\n" + SOURCE, r"No module named 'no_such_package' \(.*my_corpus\.py:1\)"),
        (SOURCE.replace("def parse", "def parsed"), r"my_corpus\.py has no function 'parse'; it has Noted, parsed, read"),
        (SOURCE.replace("return make_result", "make_result"), "it returned NoneType, not a ParseResult"),
        (SOURCE.replace("emotion)", "'')"), r"anna_happy\.wav: emotion must not be empty"),
    ],
)
def test_its_mistakes_are_told_with_its_own_file_and_line(place: Path, source: str, told: str) -> None:
    (place / "my_corpus.py").write_text(source)
    with pytest.raises(UserError, match=told):
        registry.get_parser("my_corpus:parse")(place / "data")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_corpse:parse", "there is no module 'my_corpse', neither in .* nor installed"),
        ("my_corpus.sub:parse", "there is no module 'my_corpus.sub'"),
        ("my_corpus:", "write MODULE:FUNCTION, as my_corpus:parse"),
        ("my_corpus.py:parse", "there is no module 'my_corpus.py'"),
        ("a/b:parse", "write MODULE:FUNCTION"),
        ("my_corpus:LAYOUT", "has no function 'LAYOUT'"),
        ("my_corpus", "unknown corpus 'my_corpus'; .*MODULE:FUNCTION"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered_in_words(place: Path, name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        registry.get_parser(name)


def test_a_file_here_never_takes_the_place_of_an_installed_module(place: Path) -> None:
    (place / "wave.py").write_text("raise SystemExit")
    registry.get_parser("my_corpus:parse")
    assert sys.path.index(str(place)) == len(sys.path) - 1
