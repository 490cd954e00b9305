"""Rebuild a run's report from its saved predictions: `python -m ser_hpc.report runs/emodb-1a2b3c4d`

  --ensemble RUN RUN ...   a run of its own, of the mean of these runs' probabilities, reported and comparable as any other
  --figures OUT            the page's figures for a paper, as SVG and PDF (pip install 'ser_hpc[figures]')

Writes report.html (a page to be looked at), report.md, report.json and predictions.parquet into the run directory, and prints a
short table. Beside the scores stands what can be told without listening to the clips; the first report on these shards and
folds measures it, in seconds to a few minutes. Exit code 0: every trial is there; 1: trials are missing, and are named; 2: the
run cannot be reported as it is (the message says what to do).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json, write_text
from ser_hpc.core.errors import UserError, counted
from ser_hpc.results.conditions import differences
from ser_hpc.results.cross_validation import CrossValidation, cross_validate
from ser_hpc.results.details import look_closer
from ser_hpc.results.figures import run_figures
from ser_hpc.results.page.page import to_html
from ser_hpc.results.predictions_table import write_predictions_table
from ser_hpc.results.report_json import to_json
from ser_hpc.results.report_markdown import to_markdown
from ser_hpc.results.report_terminal import to_terminal
from ser_hpc.results.sweep_table import chosen_note
from ser_hpc.results.without_listening import look_without_listening
from ser_hpc.run import chosen_precision
from ser_hpc.run.attempt_end import trained_attempts
from ser_hpc.run.run_dir import RunDir
from ser_hpc.run.snapshot import mixture_note

if TYPE_CHECKING:
    from rich.console import Console


def write_report(run: RunDir, *, panel: bool = True) -> CrossValidation:
    """Score the run as it stands and write its report. Raises UserError if its predictions are not what was planned.

    `panel`: measure what is told without listening, if it was not measured before.
    """
    result, unwritten = update_report(run, lambda sentence: None, panel=panel)
    if unwritten:
        raise UserError(unwritten)
    return result


def show_report(run: RunDir, out: Console, *, panel: bool = True, audio: bool = False) -> CrossValidation:
    """Write the report and print a short table; where nothing can be written, the table and the reason."""
    result, unwritten = update_report(run, lambda sentence: out.print(sentence, soft_wrap=True), panel=panel, audio=audio)
    out.print(to_terminal(result))
    lines = [unwritten or f"report:  {run.report_html}"]
    if result.trials and not run.ensemble.exists():  # of an ensemble there is no model
        use = {"predict": "AUDIO ...", "export": "FOLDER"}
        lines = [*(f"{name + ':':<9}python -m ser_hpc.{name} {run.path} {what}" for name, what in use.items()), *lines]
    out.print("\n" + "\n".join(lines), soft_wrap=True)
    return result


def update_report(
    run: RunDir, tell: Callable[[str], None], *, panel: bool, audio: bool = False
) -> tuple[CrossValidation, str | None]:
    """Score the run and write its report; return the reason too where it cannot be written."""
    result, unwritten = _scored(run), None

    def write_first(sentence: str) -> None:
        nonlocal unwritten
        unwritten = _write(run, result, audio)  # it is there, whatever becomes of what takes a while
        tell(sentence)

    pooled = result.scores.uar.pooled if result.scores else None
    beside = look_without_listening(run, result, write_first, compute=panel)
    result = replace(result, without_listening=beside, warnings=(*result.warnings, *beside.warnings(pooled)))
    return result, unwritten or _write(run, result, audio)


def _scored(run: RunDir) -> CrossValidation:
    attempts = list(trained_attempts(run))  # once: three files of each, on a disk that may be slow
    mixed = mixture_note(run, attempts)
    settled = [chosen_precision.precision_note(run, chosen_precision.AUTO)] if run.precision.exists() else []
    notes = [*settled, *chosen_note(run), *([mixed] if mixed else []), *differences(attempts)]
    result = cross_validate(run, notes=notes, attempts=attempts)
    return replace(result, details=look_closer(run, result))


def _write(run: RunDir, result: CrossValidation, audio: bool) -> str | None:
    """Write the report's files; return the reason where they cannot be written."""
    try:
        write_json(run.report_json, to_json(result))
        write_text(run.report_md, to_markdown(result))
        write_text(run.report_html, to_html(result, audio=audio))
        write_predictions_table(run.predictions_table, result)
    except OSError as error:  # another's run, or a copy that is kept: its scores can be read all the same
        return f"nothing was written: the report cannot be written into {run.path}: {error.strerror}"
    return None


def _write_figures(run: RunDir, result: CrossValidation, folder: Path) -> None:
    """Write the figures of a run. Raises UserError where there are none yet, or they cannot be written."""
    if result.details is None:
        raise UserError(f"{run.path}: no trial is finished, so there is nothing to draw yet")
    written = run_figures.write_figures(folder, result, result.details)
    print(f"{counted(len(written), 'figure file')} in {folder}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m ser_hpc.report", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run directory, as printed by the launcher")
    parser.add_argument(
        "--ensemble",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="make a run of these finished ones' predictions, all on the same folds: the mean of their probabilities",
    )
    parser.add_argument("--weighted", action="store_true", help="with --ensemble: weights fitted to each fold's dev part")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="with --ensemble: its folder; default: beside the first run")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the table")
    parser.add_argument("--no-panel", action="store_true", help="do not measure what is told without listening to the clips")
    parser.add_argument("--figures", type=Path, metavar="OUT", help="write the page's figures into this folder, as SVG and PDF")
    parser.add_argument(
        "--with-audio", action="store_true", help="put the sound of the clips that it is surest and wrong about into the page"
    )
    arguments = parser.parse_args(argv)
    run, panel, audio = _run(arguments), not arguments.no_panel, arguments.with_audio
    if arguments.json:
        result, unwritten = update_report(run, lambda sentence: print(sentence, file=sys.stderr), panel=panel, audio=audio)
        print(json.dumps(to_json(result), indent=1, ensure_ascii=False, allow_nan=False))
        if unwritten:
            print(unwritten, file=sys.stderr)
    else:
        result = show_report(run, cli.make_console(), panel=panel, audio=audio)
    if arguments.figures:
        _write_figures(run, result, arguments.figures)
    return 1 if result.missing else 0


def _run(arguments: argparse.Namespace) -> RunDir:
    """Return the run that is to be reported on; an ensemble is made first."""
    if (arguments.run is None) == (arguments.ensemble is None):
        raise UserError("give one run directory, or --ensemble and the runs that it is to be made of")
    if arguments.ensemble is None:
        if arguments.weighted or arguments.out:
            raise UserError("--weighted and --out are of --ensemble: add that, or leave them out")
        return RunDir(arguments.run)
    from ser_hpc.results.ensembles import make_ensemble

    return make_ensemble(arguments.ensemble, arguments.out, weighted=arguments.weighted)


if __name__ == "__main__":
    cli.run_main(main)
