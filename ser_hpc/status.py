"""`python -m ser_hpc.status RUN`: where every trial of a run stands, and what went wrong.

  --state S   only trials in these states, as failed,running; --seed and --fold likewise
  --watch     look again every few seconds until nothing runs or waits
  --logs K    the end of the log of trial number K (the first column), of each of its ranks
  --cancel    stop what is queued or running
  --retry     submit again what failed or is missing, not on the nodes where it failed (--code as for launch)
  --json      the same for programs

What Slurm says comes first (squeue, then sacct); then what the trials themselves have written into the run directory, so it
works without accounting, while Slurm is away, and for runs on this machine. Of many trials those that need a look have a row.

exit codes: 0 everything is done or still going on; 1 a trial failed for good, or is missing and not queued; 2 a mistake
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.run.run_dir import RunDir

if TYPE_CHECKING:
    from rich.console import Console

    from ser_hpc.monitor.trial_filter import TrialFilter
    from ser_hpc.monitor.trial_status import TrialStatus
    from ser_hpc.run.snapshot import CodePolicy

_LOG_LINES = 40


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    run = RunDir(options.run)
    out = cli.make_console()
    from ser_hpc.monitor.trial_filter import parse_trial_filter

    trial_filter = parse_trial_filter(options.state, options.seed, options.fold)
    if trial_filter and (options.cancel or options.logs is not None):
        what = "--cancel stops the whole run" if options.cancel else "--logs takes one trial, by its number"
        raise UserError(f"{what}: leave out --state, --seed and --fold")
    if options.logs is not None:
        return _logs(run, options.logs)
    if options.cancel:
        return _cancel(run, out)
    if options.retry:
        return _retry(run, out, options.code, trial_filter)
    if options.watch:
        from ser_hpc.monitor.poll import poll_until_done

        statuses = poll_until_done(run, out, trial_filter=trial_filter)
    else:
        statuses = _show(run, out, trial_filter, as_json=options.json)
    return 1 if any(status.is_open for status in statuses) else 0


def _show(run: RunDir, out: Console, trial_filter: TrialFilter, *, as_json: bool) -> Sequence[TrialStatus]:
    from ser_hpc.monitor import status_screen
    from ser_hpc.monitor.poll import poll_once

    statuses, notes = poll_once(run)
    if as_json:
        print(
            json.dumps(
                status_screen.status_json(run, statuses, notes, trial_filter), indent=1, ensure_ascii=False, allow_nan=False
            )
        )
    else:
        limits = (len(statuses), len(statuses)) if trial_filter else ()
        out.print(status_screen.render_status(run, statuses, notes, time.time(), out, trial_filter, *limits))
    return statuses


def _logs(run: RunDir, number: int) -> int:
    from ser_hpc.monitor.logs import last_lines
    from ser_hpc.monitor.poll import poll_once

    statuses, _ = poll_once(run)
    if not 1 <= number <= len(statuses):
        raise UserError(f"--logs is {number}, but {run.path} has the trials 1 to {len(statuses)} (the table's first column)")
    status = statuses[number - 1]
    if not status.logs:
        raise UserError(f"{status.trial} has no log yet: {status.state}" + (f", {status.reason}" if status.reason else ""))
    for path in status.logs:
        print(f"==> {path} <==", *last_lines(path, _LOG_LINES), "", sep="\n")
    return 0


def _cancel(run: RunDir, out: Console) -> int:
    from ser_hpc.launchers.choose import known_launchers
    from ser_hpc.launchers.local_launcher import LocalLauncher
    from ser_hpc.monitor.poll import poll_once

    statuses, _ = poll_once(run)
    with_launcher = LocalLauncher().active(run)
    told = False
    for launcher in known_launchers(run):
        for line in launcher.cancel(run):  # said at once: the next one may not answer
            out.print(line)
            told = True
    alone = [status for status in statuses if status.runs_without_slurm and status.trial not in with_launcher]
    for host, process in sorted({status.attempts[-1].process_to_stop for status in alone}):
        out.print(f"Trials run on {host} without Slurm: there, `kill -INT {process}` makes them save and stop.")
    if not told and not alone:
        out.print("Nothing of this run is queued or running.")
    return 0


def _retry(run: RunDir, out: Console, policy: CodePolicy, trial_filter: TrialFilter) -> int:
    from ser_hpc.core.errors import listed
    from ser_hpc.launch import resubmit
    from ser_hpc.launchers.choose import active_trials
    from ser_hpc.monitor.poll import poll_once
    from ser_hpc.monitor.trial_status import failed_nodes

    statuses, _ = poll_once(run)
    busy = active_trials(run)
    again = [status for status in trial_filter.of(statuses) if status.is_open and status.trial not in busy]
    if not again:
        which = "every trial that is asked for" if trial_filter else "every trial"
        out.print(f"Nothing to submit again: {which} is done, queued or running.")
        return 0
    exclude = failed_nodes(run, again)
    out.print(f"Again: {listed([status.trial for status in again], 20)}" + (f"; not on {', '.join(exclude)}" * bool(exclude)))
    return resubmit(run, [status.trial for status in again], exclude, policy)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ser_hpc.status", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, as printed by the launcher")
    parser.add_argument("--state", metavar="S", help="only trials in these states, as failed,running")
    parser.add_argument("--seed", metavar="N", help="only trials of these seeds, as 0,3")
    parser.add_argument("--fold", metavar="N", help="only trials of these folds")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="look again every few seconds")
    what.add_argument("--logs", type=int, metavar="K", help="the end of trial number K's logs")
    what.add_argument("--cancel", action="store_true", help="stop what is queued or running")
    what.add_argument("--retry", action="store_true", help="submit again what failed or is missing")
    parser.add_argument(
        "--code", choices=("refuse", "saved", "mixed"), default="refuse", help="with --retry: which code to run"
    )
    what.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    cli.run_main(main)
