"""Rebuild a run's report from its saved predictions: `python -m ser_hpc.report runs/emodb-1a2b3c4d`

Writes report.json and report.md into the run directory and prints a short table. Exit code 0: every trial is there;
1: trials are missing, and are named; 2: the run cannot be reported as it is (the message says what to do).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ser_hpc import console
from ser_hpc.cluster.code import mixture
from ser_hpc.errors import UserError
from ser_hpc.files import write_json, write_text
from ser_hpc.results.conditions import differences
from ser_hpc.results.cross_validation import CrossValidation, cross_validate
from ser_hpc.results.render import to_json, to_markdown, to_terminal
from ser_hpc.results.run_dir import RunDir

if TYPE_CHECKING:
    from rich.console import Console


def write_report(run: RunDir) -> CrossValidation:
    """Score the run as it stands and write its report. Raises UserError if its predictions are not what was planned."""
    mixed = mixture(run)
    result = cross_validate(run, notes=[*([mixed] if mixed else []), *differences(run)])
    try:
        write_json(run.report_json, to_json(result))
        write_text(run.report_md, to_markdown(result))
    except OSError as error:
        raise UserError(f"the report cannot be written into {run.path}: {error.strerror}") from error
    return result


def show(run: RunDir, result: CrossValidation, out: Console) -> None:
    """The short table, and where the whole report is."""
    out.print(to_terminal(result))
    out.print(f"\nreport: {run.report_md}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m ser_hpc.report", description=__doc__, formatter_class=console.Help)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, as printed by the launcher")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the table")
    arguments = parser.parse_args(argv)
    run = RunDir(arguments.run)
    result = write_report(run)
    if arguments.json:
        print(json.dumps(to_json(result), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        show(run, result, console.screen())
    return 1 if result.missing else 0


if __name__ == "__main__":
    console.run(main)
