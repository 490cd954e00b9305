"""A user id that has no name and no environment of its own, as in many a container, is nobody's mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Python as such a user sees it, be the tests run by whom they will.
NAMELESS = """
import pwd
def nobody(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = nobody
"""


@pytest.fixture
def nameless(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(NAMELESS)
    kept = {name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    return kept | {"PYTHONPATH": str(tmp_path)}


def test_everything_that_asks_for_a_name_is_given_one(nameless: dict[str, str]) -> None:
    """torch's compiler asks when it is imported, by transformers for one."""
    code = (
        "import ser_hpc.engine.distributed.world, getpass, os, torch._dynamo; print(getpass.getuser() == f'uid{os.getuid()}')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=nameless, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_a_name_that_is_known_stays() -> None:
    code = "import ser_hpc, os; print(os.environ['USER'])"
    environment = os.environ | {"USER": "ann"}
    environment.pop("LOGNAME", None)
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == "ann"
