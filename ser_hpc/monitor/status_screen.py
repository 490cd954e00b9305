"""The status of a run as a person sees it: a headline, a row per trial, and below it in words what is not as it should be."""

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
    standings: Sequence[TrialStatus],
    notes: Iterable[str],
    now: float,
    out: Console,
    asked_for: TrialFilter = EVERYTHING,
    most: int = MOST_ROWS,
    causes: int = MOST_CAUSES,
) -> RenderableType:
    """Everything that the status command shows, for the width of `out`. `now`: epoch seconds.

    Of the whole run the headline; rows of the trials `asked_for`, and of more than `most` only of those that need a look.
    `causes`: so many different things are said of them at most.
    """
    chosen = asked_for.of(standings)
    rows = chosen if len(chosen) <= most else needing_attention(chosen)[:most]
    parts: list[RenderableType] = [Text(f"{run.path.resolve().name}: {status_headline(standings)}", style="bold")]
    if words := describe_times(standings, now):
        parts.append(Text(words))
    parts += [_table_for(out, rows)] if rows else []
    if not chosen:
        parts.append(Text("No trial is what --state, --seed and --fold ask for."))
    parts += _left_out(chosen, rows)
    parts += _details(chosen, causes)
    if example := next((standing.number for standing in chosen if standing.is_open and standing.logs), None):
        parts.append(Text(f"\nTo read on: --logs {example}. To submit again what failed or is missing: --retry."))
    return Group(*parts, *(Text(f"note: {note}", style="yellow") for note in notes))


def fitted(
    run: RunDir, standings: Sequence[TrialStatus], notes: Sequence[str], now: float, out: Console, asked_for: TrialFilter
) -> RenderableType:
    """As `render_status`, but not higher than the terminal: rows are left out, the least telling first, and then causes."""
    shown: RenderableType = ""
    for causes in (MOST_CAUSES, 6, 3, 1, 0):
        rows, fewest = out.height, 3 if causes else 1
        while True:
            shown = render_status(run, standings, notes, now, out, asked_for, rows, causes)
            over = len(out.render_lines(shown)) - (out.height - 1)  # a terminal keeps a line for the cursor
            if over <= 0:
                return shown
            if rows <= fewest:
                break
            rows = max(fewest, min(rows, len(standings)) - over)
    return shown


def status_headline(standings: Sequence[TrialStatus]) -> str:
    """`15 trials: 3 done, 2 running, 10 waiting`."""
    counts: dict[str, int] = dict.fromkeys(("done", "running"), 0)
    for standing in standings:
        state = _in_short(standing.state)
        counts[state] = counts.get(state, 0) + 1
    if counts["done"] == len(standings):
        return f"{counted(len(standings), 'trial')}, all done"
    return f"{counted(len(standings), 'trial')}: " + ", ".join(f"{number:,} {state}" for state, number in counts.items())


def _in_short(state: str) -> str:
    return "running" if state in RUNNING else state


def describe_times(standings: Sequence[TrialStatus], now: float) -> str:
    """Since when the run goes on, and roughly until when."""
    began = [standing.attempts[0].started for standing in standings if standing.attempts]
    if not began:
        return ""
    last = max(attempt.last_sign for standing in standings for attempt in standing.attempts[-1:])
    going_on = any(standing.state in RUNNING + QUEUED for standing in standings)
    words = (
        f"began {format_duration_s(now - min(began))} ago"
        if going_on
        else f"took {format_duration_s(last - min(began))}, until {_clock(last)}"
    )
    left_s = seconds_left(standings)
    if left_s is not None:
        words += (
            f"; the last trial ends in about {format_duration_s(left_s)} ({_clock(now + left_s)})"
            " if as many go on running as do now"
        )
    return words


def seconds_left(standings: Sequence[TrialStatus]) -> float | None:
    """Until the last trial ends, roughly: what is left, shared by as many trials at a time as run now. None where unknown."""
    running = [standing for standing in standings if standing.state in RUNNING]
    left = [standing.remaining_s for standing in running if standing.remaining_s is not None]
    if not left:
        return None
    whole = [standing.elapsed_s for standing in standings if standing.elapsed_s is not None]
    whole += [
        standing.remaining_s + (standing.attempts[-1].last_sign - standing.attempts[0].started)
        for standing in running
        if standing.remaining_s is not None
    ]
    trial_s = sum(whole) / len(whole)
    todo_s = sum(left) + trial_s * (len(running) - len(left))
    for standing in standings:
        if standing.state in QUEUED:
            part_done = standing.progress.get("step", 0) / max(1, standing.progress.get("steps", 1))
            todo_s += trial_s * (1 - part_done)
    return max(max(left), todo_s / len(running))


def format_duration_s(seconds: float) -> str:
    """In the largest unit that makes sense: `40 s`, `12 min`, `3.4 h`, `2.1 d`."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{int(name == 'h')}f} {name}"
    return f"{seconds / 86400:.1f} d"


def status_json(
    run: RunDir, standings: Sequence[TrialStatus], notes: Iterable[str], asked_for: TrialFilter = EVERYTHING
) -> dict[str, Any]:
    """The same for programs, every trial that is asked for; seconds and epoch seconds."""
    return {
        "run": str(run.path.resolve()),
        "notes": list(notes),
        "seconds_left": seconds_left(standings),
        "trials": [
            {
                "number": standing.number,
                "seed": standing.trial.seed,
                "fold": standing.trial.fold,
                "state": standing.state,
                "why": standing.reason,
                "open": standing.is_open,
                "nodes": standing.nodes,
                **{key: standing.progress.get(key) for key in ("epoch", "epochs", "step", "steps", "best_dev_uar")},
                "seconds_left": standing.remaining_s,
                "restarts": standing.restarts,
                "error": standing.error.line if standing.error else None,
                "job": asdict(standing.job) if standing.job else None,
                "logs": [str(path) for path in standing.logs],
            }
            for standing in asked_for.of(standings)
        ],
    }


def _table(standings: Sequence[TrialStatus], *, with_steps: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    counters = ("epoch", "step") if with_steps else ("epoch",)
    for name in ("#", "seed", "fold", "state", "node", *counters, "dev UAR", "left", "restarts"):
        # Only the nodes' names may be broken where it is narrow.
        table.add_column(
            name, justify="left" if name in ("state", "node") else "right", no_wrap=name != "node", overflow="fold"
        )
    for standing in standings:
        uar = standing.progress.get("best_dev_uar")
        table.add_row(
            str(standing.number),
            str(standing.trial.seed),
            str(standing.trial.fold),
            Text(standing.state, style=_COLOURS.get(standing.state, "")),
            Text(standing.nodes),
            *(_so_far(standing, name) for name in counters),
            "" if uar is None else f"{uar:.3f}",
            "" if standing.remaining_s is None else format_duration_s(standing.remaining_s),
            str(standing.restarts or ""),
        )
    return table


def _so_far(standing: TrialStatus, counter: str) -> str:
    """Steps that are made; of epochs the one under way, from 1, and of a trial that is done how many it took."""
    done, of = standing.progress.get(counter), standing.progress.get(f"{counter}s")
    if done is None or of is None:
        return ""
    return f"{min(done + 1, of) if counter == 'epoch' and standing.state != 'done' else done}/{of}"


def _table_for(out: Console, rows: Sequence[TrialStatus]) -> Table:
    """With as many columns as there is room for."""
    table = _table(rows, with_steps=True)
    if out.measure(table, options=out.options.update(width=1000)).maximum > out.width:
        return _table(rows, with_steps=False)
    return table


def _left_out(chosen: Sequence[TrialStatus], rows: Sequence[TrialStatus]) -> list[RenderableType]:
    """How many of each state have no row, and how to see them."""
    told = {standing.number for standing in rows}
    left = Counter(_in_short(standing.state) for standing in chosen if standing.number not in told)
    if not left:
        return []
    how = ", ".join(f"{state.replace(' ', '-')} ({count:,})" for state, count in left.items())
    return [Text(f"{'and ' if rows else ''}{sum(left.values()):,} more: --state {how}")]


def _details(standings: Sequence[TrialStatus], most: int) -> list[RenderableType]:
    """What the rows do not say, once for all trials of which it is true; of what is worst first where that is too much."""
    groups: dict[tuple[str, str], list[TrialStatus]] = {}
    for standing in standings:
        if words := _words(standing):
            job = standing.job
            # To release or resume several elements one names their array.
            groups.setdefault((standing.state, words.replace(job.job, job.array) if job else words), []).append(standing)
    told = list(groups.items())
    if len(told) > most:
        told = sorted(told, key=lambda group: ORDER.index(group[0][0]))[:most]
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    for (state, words), those in told:
        words = words if len(those) > 1 else _words(those[0])
        numbers = _ranges([standing.number for standing in those])
        table.add_row(Text(numbers, style="bold"), Text.assemble((state, _COLOURS.get(state, "")), ": ", words))
    left = len(groups) - len(told)
    more = [Text(f"and {counted(left, 'other reason')}: ask for fewer trials, as by --state failed")] if left else []
    return ["", table, *more] if told else []


def _words(standing: TrialStatus) -> str:
    return standing.error.line if standing.error else standing.reason


def _ranges(numbers: Sequence[int]) -> str:
    """`1, 4-6`; of many ranges the first and how many trials are in the others."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
    if len(words) <= _MOST_RANGES:
        return ", ".join(words)
    left = sum(last - first + 1 for first, last in parts[_MOST_RANGES - 1 :])
    return ", ".join(words[: _MOST_RANGES - 1]) + f" and {left:,} more"


def _clock(seconds: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(seconds))
