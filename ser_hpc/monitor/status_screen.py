"""Render the status of a run: a headline, a row per trial, and what is not as it should be."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ser_hpc.core.errors import counted
from ser_hpc.monitor.trial_filter import EVERYTHING, ORDER, TrialFilter, needing_attention
from ser_hpc.monitor.trial_states import QUEUED, RUNNING
from ser_hpc.monitor.trial_status import TrialStatus
from ser_hpc.run.run_dir import RunDir

_COLOURS = {"done": "green", "failed": "red", "lost": "red", "held": "yellow", "stopped": "yellow", "unknown": "yellow"}
_COLOURS |= {"suspended": "yellow"}
_COLOURS |= dict.fromkeys(RUNNING, "cyan") | dict.fromkeys(("waiting", "not started"), "dim")

MOST_ROWS = 60
MOST_CAUSES = 20
_MOST_RANGES = 4


def render_status(
    run: RunDir,
    statuses: Sequence[TrialStatus],
    notes: Iterable[str],
    now: float,
    out: Console,
    trial_filter: TrialFilter = EVERYTHING,
    most: int = MOST_ROWS,
    causes: int = MOST_CAUSES,
) -> RenderableType:
    """Render all that the status command shows, for the width of `out`: of the whole run the headline. `now`: epoch seconds.

    Rows are of the trials that `trial_filter` selects, and of more than `most` only of those that need a look; at most `causes`
    different reasons are explained.
    """
    chosen = trial_filter.of(statuses)
    rows = chosen if len(chosen) <= most else needing_attention(chosen)[:most]
    parts: list[RenderableType] = [Text(f"{run.path.resolve().name}: {status_headline(statuses)}", style="bold")]
    if message := describe_times(statuses, now):
        parts.append(Text(message))
    parts += [_table_for(out, rows)] if rows else []
    if not chosen:
        parts.append(Text("No trial is what --state, --seed and --fold ask for."))
    parts += _left_out(chosen, rows)
    parts += _details(chosen, causes)
    if example := next((status.number for status in chosen if status.is_open and status.logs), None):
        parts.append(Text(f"\nTo read on: --logs {example}. To submit again what failed or is missing: --retry."))
    return Group(*parts, *(Text(f"note: {note}", style="yellow") for note in notes))


def fitted(
    run: RunDir, statuses: Sequence[TrialStatus], notes: Sequence[str], now: float, out: Console, trial_filter: TrialFilter
) -> RenderableType:
    """Render as `render_status`, but no higher than the terminal: the least telling rows are left out first, then causes."""
    shown: RenderableType = ""
    for causes in (MOST_CAUSES, 6, 3, 1, 0):
        rows, fewest = out.height, 3 if causes else 1
        while True:
            shown = render_status(run, statuses, notes, now, out, trial_filter, rows, causes)
            over = len(out.render_lines(shown)) - (out.height - 1)  # a terminal keeps a line for the cursor
            if over <= 0:
                return shown
            if rows <= fewest:
                break
            rows = max(fewest, min(rows, len(statuses)) - over)
    return shown


def status_headline(statuses: Sequence[TrialStatus]) -> str:
    """Count trials by state: `15 trials: 3 done, 2 running, 10 waiting`."""
    counts: dict[str, int] = dict.fromkeys(("done", "running"), 0)
    for status in statuses:
        state = _in_short(status.state)
        counts[state] = counts.get(state, 0) + 1
    if counts["done"] == len(statuses):
        return f"{counted(len(statuses), 'trial')}, all done"
    return f"{counted(len(statuses), 'trial')}: " + ", ".join(f"{number:,} {state}" for state, number in counts.items())


def _in_short(state: str) -> str:
    return "running" if state in RUNNING else state


def describe_times(statuses: Sequence[TrialStatus], now: float) -> str:
    """Describe since when the run goes on, and roughly until when; empty before it began. `now`: epoch seconds."""
    began = [status.attempts[0].started for status in statuses if status.attempts]
    if not began:
        return ""
    last = max(attempt.last_sign for status in statuses for attempt in status.attempts[-1:])
    going_on = any(status.state in RUNNING + QUEUED for status in statuses)
    message = (
        f"began {format_duration_s(now - min(began))} ago"
        if going_on
        else f"took {format_duration_s(last - min(began))}, until {_clock(last)}"
    )
    left_s = seconds_left(statuses)
    if left_s is not None:
        message += (
            f"; the last trial ends in about {format_duration_s(left_s)} ({_clock(now + left_s)})"
            " if as many go on running as do now"
        )
    return message


def seconds_left(statuses: Sequence[TrialStatus]) -> float | None:
    """Estimate when the last trial ends: the work left, shared by as many trials at a time as run now. None where unknown."""
    running = [status for status in statuses if status.state in RUNNING]
    left = [status.remaining_s for status in running if status.remaining_s is not None]
    if not left:
        return None
    whole = [status.elapsed_s for status in statuses if status.elapsed_s is not None]
    whole += [
        status.remaining_s + (status.attempts[-1].last_sign - status.attempts[0].started)
        for status in running
        if status.remaining_s is not None
    ]
    trial_s = sum(whole) / len(whole)
    todo_s = sum(left) + trial_s * (len(running) - len(left))
    for status in statuses:
        if status.state in QUEUED:
            part_done = status.progress.get("step", 0) / max(1, status.progress.get("steps", 1))
            todo_s += trial_s * (1 - part_done)
    return max(max(left), todo_s / len(running))


def format_duration_s(seconds: float) -> str:
    """Format a time in the largest unit that makes sense: `40 s`, `12 min`, `3.4 h`, `2.1 d`."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{int(name == 'h')}f} {name}"
    return f"{seconds / 86400:.1f} d"


def status_json(
    run: RunDir, statuses: Sequence[TrialStatus], notes: Iterable[str], trial_filter: TrialFilter = EVERYTHING
) -> dict[str, Any]:
    """Return what `render_status` shows as JSON, for every trial that is selected; seconds and epoch seconds."""
    return {
        "run": str(run.path.resolve()),
        "notes": list(notes),
        "seconds_left": seconds_left(statuses),
        "trials": [
            {
                "number": status.number,
                "seed": status.trial.seed,
                "fold": status.trial.fold,
                "state": status.state,
                "why": status.reason,
                "open": status.is_open,
                "nodes": status.nodes,
                **{key: status.progress.get(key) for key in ("epoch", "epochs", "step", "steps", "best_dev_uar")},
                "seconds_left": status.remaining_s,
                "restarts": status.restarts,
                "error": status.error.line if status.error else None,
                "job": asdict(status.job) if status.job else None,
                "logs": [str(path) for path in status.logs],
            }
            for status in trial_filter.of(statuses)
        ],
    }


def _table(statuses: Sequence[TrialStatus], *, with_steps: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    counters = ("epoch", "step") if with_steps else ("epoch",)
    for name in ("#", "seed", "fold", "state", "node", *counters, "dev UAR", "left", "restarts"):
        # Only the nodes' names may be broken where it is narrow.
        table.add_column(
            name, justify="left" if name in ("state", "node") else "right", no_wrap=name != "node", overflow="fold"
        )
    for status in statuses:
        uar = status.progress.get("best_dev_uar")
        table.add_row(
            str(status.number),
            str(status.trial.seed),
            str(status.trial.fold),
            Text(status.state, style=_COLOURS.get(status.state, "")),
            Text(status.nodes),
            *(_so_far(status, name) for name in counters),
            "" if uar is None else f"{uar:.3f}",
            "" if status.remaining_s is None else format_duration_s(status.remaining_s),
            str(status.restarts or ""),
        )
    return table


def _so_far(status: TrialStatus, counter: str) -> str:
    """Format progress: steps that are made; of epochs the one under way, from 1, and of a done trial how many it took."""
    done, of = status.progress.get(counter), status.progress.get(f"{counter}s")
    if done is None or of is None:
        return ""
    return f"{min(done + 1, of) if counter == 'epoch' and status.state != 'done' else done}/{of}"


def _table_for(out: Console, rows: Sequence[TrialStatus]) -> Table:
    """Make the table with as many columns as there is room for."""
    table = _table(rows, with_steps=True)
    if out.measure(table, options=out.options.update(width=1000)).maximum > out.width:
        return _table(rows, with_steps=False)
    return table


def _left_out(chosen: Sequence[TrialStatus], rows: Sequence[TrialStatus]) -> list[RenderableType]:
    """Say how many of each state have no row, and how to see them."""
    shown = {status.number for status in rows}
    left = Counter(_in_short(status.state) for status in chosen if status.number not in shown)
    if not left:
        return []
    options = ", ".join(f"{state.replace(' ', '-')} ({count:,})" for state, count in left.items())
    return [Text(f"{'and ' if rows else ''}{sum(left.values()):,} more: --state {options}")]


def _details(statuses: Sequence[TrialStatus], most: int) -> list[RenderableType]:
    """Explain what the rows do not, once for all trials of which it is true; the worst first where that is too much."""
    groups: dict[tuple[str, str], list[TrialStatus]] = {}
    for status in statuses:
        if message := _message(status):
            job = status.job
            # To release or resume several elements one names their array.
            groups.setdefault((status.state, message.replace(job.job, job.array) if job else message), []).append(status)
    shown = list(groups.items())
    if len(shown) > most:
        shown = sorted(shown, key=lambda group: ORDER.index(group[0][0]))[:most]
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    for (state, message), those in shown:
        message = message if len(those) > 1 else _message(those[0])
        numbers = _ranges([status.number for status in those])
        table.add_row(Text(numbers, style="bold"), Text.assemble((state, _COLOURS.get(state, "")), ": ", message))
    left = len(groups) - len(shown)
    more = [Text(f"and {counted(left, 'other reason')}: ask for fewer trials, as by --state failed")] if left else []
    return ["", table, *more] if shown else []


def _message(status: TrialStatus) -> str:
    return status.error.line if status.error else status.reason


def _ranges(numbers: Sequence[int]) -> str:
    """Format `1, 4-6`; of many ranges the first and how many trials are in the others."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
    if len(texts) <= _MOST_RANGES:
        return ", ".join(texts)
    left = sum(last - first + 1 for first, last in parts[_MOST_RANGES - 1 :])
    return ", ".join(texts[: _MOST_RANGES - 1]) + f" and {left:,} more"


def _clock(seconds: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(seconds))
