"""Rebuild a run's report from its saved predictions: `python -m ser_hpc.report runs/emodb-1a2b3c4d`

Writes report.json and report.md into the run directory and prints a short table. Exit code 0: every trial is there;
1: trials are missing, and are named; 2: the run cannot be reported as it is (the message says what to do).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json, write_text
from ser_hpc.core.errors import UserError
from ser_hpc.results.conditions import differences
from ser_hpc.results.cross_validation import CrossValidation, cross_validate
from ser_hpc.results.report_json import to_json
from ser_hpc.results.report_markdown import to_markdown
from ser_hpc.results.report_terminal import to_terminal
from ser_hpc.run import chosen_precision
from ser_hpc.run.attempt_end import trained_attempts
from ser_hpc.run.run_dir import RunDir
from ser_hpc.run.snapshot import mixture_note

if TYPE_CHECKING:
    from rich.console import Console


def write_report(run: RunDir) -> CrossValidation:
    """Score the run as it stands and write its report. Raises UserError if its predictions are not what was planned."""
    result = _scored(run)
    if unwritten := _write(run, result):
        raise UserError(unwritten)
    return result


def show_report(run: RunDir, out: Console) -> CrossValidation:
    """Write the report and print a short table; where nothing can be written, the table and the reason."""
    result = _scored(run)
    unwritten = _write(run, result)
    out.print(to_terminal(result))
    out.print(f"\n{unwritten or f'report: {run.report_md}'}", soft_wrap=True)
    return result


def _scored(run: RunDir) -> CrossValidation:
    attempts = list(trained_attempts(run))  # once: three files of each, on a disk that may be slow
    mixed = mixture_note(run, attempts)
    settled = [chosen_precision.precision_note(run, chosen_precision.AUTO)] if run.precision.exists() else []
    return cross_validate(run, notes=[*settled, *([mixed] if mixed else []), *differences(attempts)], attempts=attempts)


def _write(run: RunDir, result: CrossValidation) -> str | None:
    """Write both report files; return the reason where they cannot be written."""
    try:
        write_json(run.report_json, to_json(result))
        write_text(run.report_md, to_markdown(result))
    except OSError as error:  # another's run, or a copy that is kept: its scores can be read all the same
        return f"nothing was written: the report cannot be written into {run.path}: {error.strerror}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m ser_hpc.report", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, as printed by the launcher")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the table")
    arguments = parser.parse_args(argv)
    run = RunDir(arguments.run)
    if arguments.json:
        result = _scored(run)
        print(json.dumps(to_json(result), indent=1, ensure_ascii=False, allow_nan=False))
        if unwritten := _write(run, result):
            print(unwritten, file=sys.stderr)
    else:
        result = show_report(run, cli.make_console())
    return 1 if result.missing else 0


if __name__ == "__main__":
    cli.run_main(main)
