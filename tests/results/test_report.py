"""The command `python -m ser_hpc.report RUN`: exit codes, files, and how little it needs to start."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ser_hpc import report
from ser_hpc.core import cli
from ser_hpc.core.atomic_io import read_json
from ser_hpc.core.errors import UserError
from ser_hpc.report import main, write_report
from ser_hpc.run.plan import PLAN_FORMAT
from ser_hpc.run.run_dir import RunDir, Trial

MakeRun = Callable[..., RunDir]


def test_complete_is_0_and_prints_the_table_and_the_path(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    assert main([str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert "macro-F1" in printed and printed.endswith(f"report:  {run.report_html}\n")
    assert f"python -m ser_hpc.export {run.path} FOLDER\n" in printed, "what to do with it next"
    assert read_json(run.report_json)["missing"] == []
    assert run.report_md.read_text().startswith("# emodb\n")


def test_incomplete_is_1_and_names_what_is_missing(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    shutil.rmtree(run.trial(Trial(0, 3)).path)
    assert main([str(run.path)]) == 1
    assert "seed 0 fold 3: not started" in capsys.readouterr().out
    assert read_json(run.report_json)["missing"] == [{"seed": 0, "fold": 3, "reason": "not started"}]


def test_json_prints_what_it_writes(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    assert main([str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_json(run.report_json)


def test_rebuilding_gives_the_same_bytes(make_run: MakeRun) -> None:
    """A report depends on the run alone, so two reports that differ are of different predictions."""
    run = make_run()
    write_report(run)
    first = run.report_json.read_bytes(), run.report_md.read_bytes()
    write_report(run)
    assert (run.report_json.read_bytes(), run.report_md.read_bytes()) == first


def test_what_cannot_be_reported_is_2_and_writes_nothing(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No run directory; a plan of another format; predictions that are not the planned ones."""
    run = make_run()
    path = run.trial(Trial(0, 0)).current.predictions
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    other = make_run(name="other", format=PLAN_FORMAT + 1)
    for folder, message in (
        (tmp_path, "is not a run directory"),
        (other.path, f"has format {PLAN_FORMAT + 1}"),
        (run.path, "was changed after its trial had written it"),
    ):
        with pytest.raises(SystemExit) as exited:
            cli.run_main(lambda folder=folder: main([str(folder)]))
        assert exited.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
        assert not list(folder.glob("report.*"))


def test_a_folder_that_cannot_be_written_is_a_users_error(make_run: MakeRun) -> None:
    run = make_run()
    run.report_md.mkdir()
    with pytest.raises(UserError, match="the report cannot be written into"):
        write_report(run)


def test_it_starts_without_torch_and_other_heavy_libraries() -> None:
    """Reports are made on login nodes."""
    heavy = ("torch", "sklearn", "pyarrow", "pandas", "scipy", "transformers", "rich")
    code = f"import sys, ser_hpc.report; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_run_that_is_only_read_is_reported_all_the_same(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's run, a copy on a read-only disk: the table is there, and that nothing was written."""

    def refuse(path: Path, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    run = make_run()
    monkeypatch.setattr(report, "write_json", refuse)
    assert main([str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert "macro-F1" in shown and "nothing was written" in shown and "Read-only" in shown and "report:" not in shown
    assert main([str(run.path), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["missing"] == [] and "nothing was written" in told.err
