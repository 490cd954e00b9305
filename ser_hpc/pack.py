"""Pack a corpus into tar shards, once; new folds and new label sets never need it again.

    python -m ser_hpc.pack emodb   /data/emodb        /scratch/shards/emodb
    python -m ser_hpc.pack iemocap /data/IEMOCAP      /scratch/shards/iemocap
    python -m ser_hpc.pack csv     /data/mine/all.csv /scratch/shards/mine

A csv is any other corpus as a table: columns audio (path, relative to the
table), emotion and speaker; optional session, gender, split, text_id, start_s,
end_s. ROOT is then the file; jsonl takes the same names, one object a line.

Any rate, channel count and format becomes 16 kHz mono FLAC. A clip that cannot
be packed (truncated, no audio, under 0.1 s) stops the packing before anything is
written, and all such clips are named; --skip-bad leaves them out instead, named
in OUT/pack_report.json. Interrupted, killed or out of disk: the same command
again continues. When files or annotations have changed, it makes only the shards
that differ again. Exit code 0: packed; 2: not packed, the message says why.

A big corpus on many machines: --part 0/20 to --part 19/20 pack a share of the shards
each, in any order or all at once (slurm/build_shards.sbatch); the last one to end
checks all shards and completes the dataset. The bytes are those of packing at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ser_hpc import console
from ser_hpc.corpora.catalogue import PARSERS, parser
from ser_hpc.errors import UserError, listed
from ser_hpc.shards.index import DATASET, REPORT
from ser_hpc.shards.report import Count, PackReport
from ser_hpc.shards.write import CHECKING, COMPLETING, PACKING, READING, pack

UNITS = {READING: "clips", CHECKING: "s of sound", PACKING: "s of sound", COMPLETING: "s of sound"}
SHOWN = 24  # rows of a table, or lines of a list; the report has all


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    part = _part(arguments.part)
    parsed = parser(arguments.corpus)(arguments.root)
    screen, began = Console(highlight=False, soft_wrap=True), time.monotonic()
    for warning in parsed.warnings[:SHOWN]:
        screen.print(f"warning: {warning}", markup=False)
    if len(parsed.warnings) > SHOWN:
        screen.print(f"and {len(parsed.warnings) - SHOWN} more warnings")
    screen.print(f"{arguments.corpus}: {len(parsed.utterances)} clips in {arguments.root}", markup=False)
    with _Progress() as progress:
        report = pack(
            parsed.utterances,
            arguments.out,
            workers=arguments.workers,
            skip_bad=arguments.skip_bad,
            shard_mb=arguments.shard_mb,
            left_out=parsed.skipped,
            part=part,
            on_progress=progress,
        )
    _show(report, arguments.out, time.monotonic() - began, screen)
    if part != (0, 1):
        complete = (arguments.out / DATASET).exists()
        state = "all parts are packed" if complete else "others are still to be packed; the last one completes the dataset"
        screen.print(f"part {arguments.part}: {state}", markup=False)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = argparse.ArgumentParser(
        "python -m ser_hpc.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("corpus", metavar="CORPUS", help=f"how to read ROOT: {listed(list(PARSERS), 40)}")
    arguments.add_argument("root", metavar="ROOT", type=Path, help="the corpus as published (csv, jsonl: the table)")
    arguments.add_argument("out", metavar="OUT", type=Path, help="a folder for the shards: new, empty, or packed into before")
    arguments.add_argument("--skip-bad", action="store_true", help="leave clips out that cannot be packed, instead of stopping")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    arguments.add_argument(
        "--workers", type=int, metavar="N", default=cores, help="processes (default: the cores here, %(default)s)"
    )
    arguments.add_argument(
        "--shard-mb", type=int, metavar="MB", default=64, help="close a shard at about this size (default: %(default)s)"
    )
    arguments.add_argument(
        "--part", metavar="K/N", default="0/1", help="pack only the K-th of N parts, counted from 0 (default: %(default)s, all)"
    )
    return arguments.parse_args(argv)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise UserError(
        f"--part {text}: write K/N with K from 0 to N - 1, as in --part 0/8; an array's tasks must be counted from 0 and be "
        "submitted all together: --array=0-7"
    )


class _Progress:
    """A bar on a terminal, a line at every tenth otherwise; on stderr, so that stdout holds the result alone."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.fields[unit]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, int] = {}

    def __enter__(self) -> _Progress:
        if self._bars.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars.console.is_terminal:
            self._bars.stop()

    def __call__(self, stage: str, done: float, total: float) -> None:
        unit = UNITS[stage]
        if self._bars.console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, unit=unit)
            self._bars.update(self._tasks[stage], completed=done)
            return
        tenth = int(10 * done / total)
        if tenth > self._told.get(stage, 0):
            self._told[stage] = tenth
            print(f"{stage}: {tenth * 10} % ({done:,.0f} of {total:,.0f} {unit})", file=sys.stderr, flush=True)


def _show(report: PackReport, out: Path, took: float, screen: Console) -> None:
    """The report for people: tables of counts, then everything unusual, then the sums."""
    for corpus, columns in report.counts.items():
        tables = [_table(f"{corpus}: {column}", counts) for column, counts in columns.items()]
        screen.print(Columns(tables, padding=(0, 3)), soft_wrap=False)
    _show_list(f"{len(report.skipped)} skipped", [str(bad) for bad in report.skipped], screen)
    _show_list(
        f"{len(report.identical)} groups of clips with identical sound", [", ".join(k) for k in report.identical], screen
    )
    if report.clipped:
        screen.print(f"{report.clipped} clips went beyond full scale (float files, or by resampling) and were cut to it")
    kept = f", {report.kept} of them from before" if report.kept else ""
    screen.print(
        f"packed {report.clips:,} clips, {_duration(report.seconds)} of sound, {report.bytes / 1e6:,.1f} MB "
        f"in {report.shards} shards{kept}; took {took:.1f} s\nshards: {out}",
        markup=False,
    )


def _table(title: str, counts: dict[str, Count]) -> Table:
    """One row a value; beyond SHOWN rows the rest is summed up in the last."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("clips", justify="right")
    table.add_column("minutes", justify="right")
    rows = list(counts.items())
    if len(rows) > SHOWN:
        rest = [count for _, count in rows[SHOWN - 1 :]]
        total = Count(sum(count.clips for count in rest), sum(count.seconds for count in rest))
        rows = [*rows[: SHOWN - 1], (f"{len(rest)} more", total)]
    for value, count in rows:
        table.add_row(Text(value or "(none)"), f"{count.clips:,}", f"{count.seconds / 60:,.1f}")
    return table


def _show_list(title: str, lines: Sequence[str], screen: Console) -> None:
    if not lines:
        return
    screen.print(f"{title}:")
    for line in lines[:SHOWN]:
        screen.print(f"  {line}", markup=False)
    if len(lines) > SHOWN:
        screen.print(f"  and {len(lines) - SHOWN} more; all are in {REPORT}")


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


if __name__ == "__main__":
    console.run(main)
