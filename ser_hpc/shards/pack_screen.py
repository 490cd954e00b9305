"""Show packing on the screen: progress, and the report at the end. For `ser_hpc.pack`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ser_hpc.core import cli
from ser_hpc.core.errors import counted
from ser_hpc.corpora.parse_result import summarize_reasons
from ser_hpc.shards.index import REPORT
from ser_hpc.shards.pack_report import ClipCount, PackReport
from ser_hpc.shards.quality import KINDS, FindingPolicy
from ser_hpc.shards.write import READING

SHOWN = 24  # rows of a table, or lines of a list; the report has all
EXAMPLES = 3
PAGE = 120  # columns of tables that stand side by side, where nothing limits them
_DONE: dict[FindingPolicy, str] = {"drop": "left out", "keep": "packed", "fail": "refused"}


class ProgressBars:
    """Progress bars on a terminal, a line at every tenth otherwise; on stderr, so that stdout holds the result alone."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:24}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.fields[unit]}", markup=False),
            TimeRemainingColumn(),
            console=cli.make_console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}
        self._reported: dict[str, int] = {}

    def __enter__(self) -> ProgressBars:
        if self._bars.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars.console.is_terminal:
            self._bars.stop()

    def __call__(self, stage: str, done: float, total: float) -> None:
        unit = "clips" if stage == READING else "s of sound"
        if self._bars.console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, unit=unit)
            self._bars.update(self._tasks[stage], completed=done)
            return
        tenth = int(10 * done / total) if total else 10
        if tenth > self._reported.get(stage, 0):
            self._reported[stage] = tenth
            print(f"{stage}: {tenth * 10} % ({done:,.0f} of {total:,.0f} {unit})", file=sys.stderr, flush=True)


def print_pack_report(report: PackReport, out: Path, took_s: float, screen: Console) -> None:
    """Print the report: tables of counts, then everything unusual, then the sums."""
    for corpus, columns in report.counts.items():
        tables = [_counts(f"{corpus}: {column}", counts) for column, counts in columns.items()]
        screen.print(Columns(tables, padding=(0, 3)), soft_wrap=False, width=min(screen.width, PAGE))
    if report.left_out:
        _paragraphs(f"{counted(len(report.left_out), 'file')} left out", summarize_reasons(report.left_out), screen)
    if report.findings:
        screen.print(_findings(report), soft_wrap=False)
        screen.print(f"All of them, by name: {out / REPORT}")
    earlier = f", {report.kept} of them from before" if report.kept else ""
    screen.print(
        f"packed {counted(report.clips, 'clip')}, {format_duration(report.seconds)} of sound, {report.bytes / 1e6:,.1f} MB "
        f"in {counted(report.shards, 'shard')}{earlier}; took {took_s:.1f} s\nshards: {out}",
    )


def _paragraphs(title: str, paragraphs: Sequence[str], screen: Console) -> None:
    """Print at most SHOWN paragraphs below a title."""
    screen.print(f"{title}:")
    for paragraph in paragraphs[:SHOWN]:
        screen.print(indent(paragraph, "  "))
    if len(paragraphs) > SHOWN:
        screen.print(f"  and {counted(len(paragraphs) - SHOWN, 'more reason')}")


def format_duration(seconds: float) -> str:
    """Format seconds as s, min or h, by their size."""
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _findings(report: PackReport) -> Table:
    table = Table(title="findings", title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("done")
    table.add_column("clips", justify="right")
    table.add_column("for instance", overflow="fold")
    for kind in KINDS:
        if found := report.of(kind):
            examples = [f"{one.path.name} ({one.detail})" for one in found[:EXAMPLES]]
            table.add_row(kind, _DONE[report.rules.policies[kind]], f"{len(found):,}", Text("\n".join(examples)))
    return table


def _counts(title: str, counts: dict[str, ClipCount]) -> Table:
    """Make a table of one row a value; beyond SHOWN rows the rest is summed up in the last."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("clips", justify="right")
    table.add_column("minutes", justify="right")
    rows = list(counts.items())
    if len(rows) > SHOWN:
        rest = [count for _, count in rows[SHOWN - 1 :]]
        total = ClipCount(sum(count.clips for count in rest), sum(count.seconds for count in rest))
        rows = [*rows[: SHOWN - 1], (f"{len(rest)} more", total)]
    for value, count in rows:
        table.add_row(Text(value or "(none)"), f"{count.clips:,}", f"{count.seconds / 60:,.1f}")
    return table
