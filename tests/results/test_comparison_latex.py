"""`compare --latex`: a table for a paper, whose numbers are the comparison's, and which LaTeX reads as it is meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ser_hpc.compare import main
from ser_hpc.results.comparison_latex import escape_latex
from ser_hpc.run.run_dir import RunDir

MakeRun = Callable[..., RunDir]


def test_a_row_holds_the_scores_of_its_system(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = make_run(seeds=(0, 1)), tmp_path / "b_50%"
    shutil.copytree(run.path, other)
    assert main([str(run.path), str(other), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main([str(run.path), str(other), "--latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.removesuffix(" \\\\").split(" & ") for line in lines if " & " in line]
    assert lines[1] == "\\begin{tabular}{lccccc}" and lines[-1] == "\\end{tabular}" and {len(row) for row in rows} == {6}
    for row, system in zip(rows[1:], told["systems"], strict=True):
        low, high = system["ci95"]
        assert row[2] == f"{system['pooled_uar']:.3f} [{low:.3f}, {high:.3f}]"
    assert rows[1][0] == "emodb" and rows[2][0] == "b\\_50\\%" and rows[1][5] == "" and rows[2][5] == "1.000"


def test_names_are_shown_as_they_are() -> None:
    assert escape_latex("a_b & 5% {x} \\ ~^") == (
        "a\\_b \\& 5\\% \\{x\\} \\textbackslash{} \\textasciitilde{}\\textasciicircum{}"
    )
