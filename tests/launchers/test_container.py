"""The container's recipe: its parts are there, its shell is shell, and what it takes from a checkout is what is needed."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "slurm" / "ser_hpc.def").read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    head, *parts = re.split(r"^%(\w+)\n", RECIPE, flags=re.M)
    return {"": head} | dict(zip(parts[::2], parts[1::2], strict=True))


def test_its_python_is_one_that_the_project_runs_on() -> None:
    head = dict(line.split(": ") for line in sections()[""].splitlines() if line and not line.startswith("#"))
    assert head["Bootstrap"] == "docker"
    version = re.fullmatch(r"python:3\.(\d+)-slim-\w+", head["From"])
    bounds = re.fullmatch(
        r">=3\.(\d+),<3\.(\d+)", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    )
    assert version and bounds and int(bounds[1]) <= int(version[1]) < int(bounds[2])


@pytest.mark.parametrize("name", ["post", "environment", "test", "runscript"])
def test_its_shell_is_shell(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=sections()[name], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_it_takes_what_a_build_of_the_project_needs() -> None:
    pairs = [line.split() for line in sections()["files"].splitlines() if line]
    assert all((ROOT / source).exists() and target == f"/opt/ser_hpc/{source}" for source, target in pairs)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *wheel["packages"]}
    assert {source for source, _ in pairs} == needed | wheel["force-include"].keys()
