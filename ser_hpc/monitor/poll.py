"""Follow a run: read its trials' status and ask Slurm, once or until nothing of it runs or waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live

from ser_hpc.launchers.choose import trial_states
from ser_hpc.monitor import status_screen
from ser_hpc.monitor.trial_filter import EVERYTHING, TrialFilter
from ser_hpc.monitor.trial_status import TrialStatus, read_status
from ser_hpc.run.run_dir import RunDir

_LOOK_S = 3.0
_REST = 4  # times as long as it took to look: a run of many trials, or a slow disk, is not kept busy by being watched
_ASK_SLURM_S = 20.0  # its controller serves everybody


def poll_once(run: RunDir) -> tuple[tuple[TrialStatus, ...], tuple[str, ...]]:
    """Return the status of every trial of the run, and notes on what could not be asked."""
    jobs, notes = trial_states(run)
    return read_status(run, jobs, time.time()), notes


def poll_until_done(
    run: RunDir, out: Console, submit_more: Callable[[], int] = lambda: 0, trial_filter: TrialFilter = EVERYTHING
) -> Sequence[TrialStatus]:
    """Show the run until nothing runs or waits, and return the last statuses. A terminal is redrawn; a log gets a line for each
    change of the headline, and the screen last.

    `submit_more`: called whenever jobs are asked for; returns the number of trials that it has yet to submit.
    """
    printed, queried_s, left = "", 0.0, 0
    statuses: tuple[TrialStatus, ...] = ()
    draw = status_screen.fitted if out.is_terminal else status_screen.render_status
    with Live(console=out, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            if began - queried_s > _ASK_SLURM_S or not queried_s:
                left = submit_more()
                jobs, notes = trial_states(run)
                queried_s = time.monotonic()
            statuses = read_status(run, jobs, time.time(), statuses)
            live.update(draw(run, statuses, notes, time.time(), out, trial_filter), refresh=out.is_terminal)
            if not out.is_terminal and (headline := status_screen.status_headline(statuses)) != printed:
                out.print(time.strftime("%F %T"), headline, soft_wrap=True)
                printed = headline
            if not left and all(status.state == "done" or status.is_open for status in statuses):
                return statuses
            time.sleep(max(_LOOK_S, _REST * (time.monotonic() - began)))
