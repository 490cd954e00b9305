"""Hand a run on to a tracker, after or while it trains: `python -m ser_hpc.track RUN --to tensorboard|mlflow|wandb|trackio`

To be called where there is a network; the trials need none. The same command again adds what is new, and nothing twice. Handed
on are settings, curves, scores with their intervals, and the report; no predictions, no path of this machine beyond its last
name, nothing of the cluster's settings. Each tracker is an extra: pip install 'ser-hpc[mlflow]'.

exit codes:
  0   handed on, with or without trials that are missing (which it says)
  2   it cannot be: no run, no answer, a library that is missing
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ser_hpc.core import cli
from ser_hpc.core.errors import counted
from ser_hpc.report import update_report
from ser_hpc.results.tracking.record import Record, make_records
from ser_hpc.results.tracking.tracker import TRACKERS, make_tracker
from ser_hpc.run.run_dir import RunDir


def main(argv: Sequence[str] | None = None) -> int:
    """Read the run, score it anew, and hand it on. Raises UserError where that cannot be."""
    parser = argparse.ArgumentParser("python -m ser_hpc.track", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, as printed by the launcher")
    parser.add_argument("--to", required=True, metavar="TRACKER", help=f"{', '.join(TRACKERS)}, or module:Class")
    parser.add_argument(
        "--url", metavar="PLACE", help="the tracker's server; for tensorboard a folder; for trackio also a Space"
    )
    parser.add_argument(
        "--project", metavar="NAME", help="what runs are compared in (default: the run's name without its hash)"
    )
    parser.add_argument("--no-report", action="store_true", help="keep report.md and report.json here")
    parser.add_argument("--dry-run", action="store_true", help="print what would be handed on, and hand on nothing")
    options = parser.parse_args(argv)
    run = RunDir(options.run)
    run.read_plan()  # that this is a run is said before anything else
    out = cli.make_console(soft_wrap=True)
    project = options.project or str(run.read_plan().get("name") or run.path.resolve().name)
    tracker = None if options.dry_run else make_tracker(options.to, options.url, project)
    report, _ = update_report(run, lambda sentence: None, panel=False)
    for record in make_records(run, report, with_report=not options.no_report):
        if tracker is None:
            out.print(_shown(record))
        else:
            out.print(f"{record.name}: {record.state}; {counted(tracker.keep(record), 'new number')}")
    if tracker is not None:
        out.print(f"to be seen at {tracker.close()}")
    return 0


def _shown(record: Record) -> str:
    """Describe what would be handed on of a record."""
    points = f"{counted(len(record.points), 'step')} of curves" if record.points else ""
    parts = [record.state, points, ", ".join(record.files)]
    lines = [f"{record.name}: {'; '.join(part for part in parts if part)}"]
    lines += [] if record.parent else [f"  {name}={value}" for name, value in record.settings.items()]
    return "\n".join([*lines, *(f"  {name} {score:.6g}" for name, score in record.scores.items())])


if __name__ == "__main__":
    cli.run_main(main)
