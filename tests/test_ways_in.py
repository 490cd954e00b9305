"""Parts from outside the package, as a hurried or hostile user writes them: what belongs to a run's identity is found, and
every mistake is told in words; tasks whose clips lack targets are scored and reported all the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ser_hpc.config import extensions
from ser_hpc.config.load import load_settings
from ser_hpc.core.errors import UserError

HEAD = """
from ser_hpc.config.heads import HeadSettings, MlpSettings
class Mine(HeadSettings):
    def build(self, width, outputs): ...
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, the working folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def sources(reference: str) -> list[str]:
    settings = load_settings(None, [f"model.head={{kind: '{reference}'}}"])
    return list(extensions.sources_of(settings.outsiders_in_results()))


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"outs_a.py": "import outs_b\n" + HEAD, "outs_b.py": ""}, ["outs_a.py", "outs_b.py"]),
        # This package and Python's own are no part of it, even where a folder beside the file has their names.
        ({"outs_a.py": "import random\n" + HEAD, "ser_hpc/core/errors.py": "", "random.py": ""}, ["outs_a.py"]),
        (
            {"outs_a.py": "try:\n    import outs_b\nexcept SyntaxError: ...\n" + HEAD, "outs_b.py": "x = ("},
            ["outs_a.py", "outs_b.py"],
        ),
        ({"outs_a.py": b"# -*- coding: latin-1 -*-\n# \xe9\n" + HEAD.encode()}, ["outs_a.py"]),
        ({"outs_a.py": HEAD, **{f"many/{i}.py": "" for i in range(99)}}, ["outs_a.py"]),
    ],
)
def test_what_belongs_to_a_part_is_found_and_nothing_else(here: Path, files: dict[str, str | bytes], found: list[str]) -> None:
    write(here, files)
    assert sources("outs_a:Mine") == found


def test_a_link_is_what_it_points_to(here: Path) -> None:
    """By its own name, with what lies beside the link: else a run would be named by no code at all, and keep no copy."""
    write(here, {"store/version_2.py": "import outs_b\n" + HEAD, "outs_b.py": ""})
    (here / "outs_a.py").symlink_to(here / "store" / "version_2.py")
    assert sources("outs_a:Mine") == ["outs_a.py", "outs_b.py"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3"),
        (
            HEAD.replace("(HeadSettings)", "(MlpSettings)"),
            "derives from MlpSettings, a kind of the package's own: derive it from",
        ),
        (HEAD.replace("def build", "def bild"), "has no method 'build' of its own"),
    ],
)
def test_a_class_that_makes_no_part_is_refused_when_settings_are_read(here: Path, source: str, told: str) -> None:
    write(here, {"outs_a.py": source})
    with pytest.raises(UserError, match=told):
        sources("outs_a:Mine")
