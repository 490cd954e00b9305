"""Tabulate what a sweep has tried, by dev scores alone: of a run's test predictions nothing is scored here.

The best on dev is chosen, ties by their number; it alone is reported on test, once no configuration is left to be tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ser_hpc.core.atomic_io import UNREADABLE, read_json, write_json, write_text
from ser_hpc.core.errors import counted
from ser_hpc.results import markdown, plan_checks
from ser_hpc.results.cross_validation import confusion_of
from ser_hpc.run.plan import read_plan
from ser_hpc.run.run_dir import RunDir, Trial, TrialDir
from ser_hpc.run.sweep_dir import Configuration, End, SweepDir
from ser_hpc.tasks.metrics import uar

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 20  # rows on a screen


@dataclass(frozen=True, slots=True)
class SweepTable:
    """All that was tried, the best first, then what was pruned, failed or is under way; `limit`: how many there will be."""

    name: str
    rows: tuple[tuple[Configuration, End | None], ...]
    limit: int

    @property
    def chosen(self) -> End | None:
        """Return the best of those that are complete; None: there is none yet."""
        return next((end for _, end in self.rows[:1] if end and end.score is not None), None)

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing is left to be tried."""
        return len(self.rows) >= self.limit and all(end is not None for _, end in self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """Count the configurations by state."""
        states = [end.state if end else "open" for _, end in self.rows]
        return {state: states.count(state) for state in ("done", "pruned", "failed", "open") if state in states}

    def sentence(self) -> str:
        """Say how much was looked at, and what that means."""
        looked = counted(len(self.rows), "configuration")
        states = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        ahead = "" if len(self.rows) >= self.limit else f" of {self.limit}"
        return f"{looked}{ahead} looked at on dev ({states}); the test part is scored of the chosen one alone."


def make_table(sweep: SweepDir, limit: int) -> SweepTable:
    """Read what was tried."""
    found = [(configuration, sweep.end(configuration)) for configuration in sweep.configurations()]
    order = {"done": 0, "pruned": 1, "failed": 2}

    def place(row: tuple[Configuration, End | None]) -> tuple[int, float, int]:
        configuration, end = row
        score = end.score if end and end.score is not None else 0.0
        return order[end.state] if end else 3, -score, configuration.number

    return SweepTable(sweep.path.name, tuple(sorted(found, key=place)), limit)


def dev_uars(run: RunDir) -> dict[Trial, float]:
    """Score the dev parts of the run's finished trials, from their checked predictions. Raises UserError."""
    plan, found = read_plan(run), {}
    for trial in (Trial(**each) for each in plan["trials"]):
        folder = run.trial(trial)
        if folder.is_done:
            dev = plan_checks.read_trial_predictions(folder, plan, plan_checks.read_done(folder, plan))["dev"]
            found[trial] = float(uar(confusion_of(dev, plan["classes"])))
    return found


def trained_seconds(folder: TrialDir) -> float:
    """Return how long a finished trial took."""
    with suppress(*UNREADABLE):
        return float(read_json(folder.done)["seconds"])
    return 0.0


def write_table(sweep: SweepDir, table: SweepTable) -> None:
    """Write table.json and table.md."""
    chosen = table.chosen
    rows = [_row_json(*row) for row in table.rows]
    content = {"sweep": table.name, "looked_at": len(rows), "limit": table.limit, "counts": table.counts}
    write_json(sweep.table_json, content | {"chosen": chosen.run if chosen else None, "configurations": rows})
    names = _names(table)
    header = ["", *names, "dev UAR", "± std", "state", "run"]
    cells = [_cells(*row, names) for row in table.rows]
    text = f"# {table.name}\n\n{table.sentence()}\n\n{markdown.table(header, cells, [len(header) - 2, len(header) - 1])}\n"
    write_text(sweep.table_md, text)


def render_table(table: SweepTable) -> Table:
    """Lay out the best for a terminal; all of them are in the files."""
    from rich import box
    from rich.table import Table

    names = _names(table)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("", *(name.rpartition(".")[2] for name in names), "dev UAR", "± std", "state"):
        shown.add_column(name, justify="left" if name == "state" else "right")
    for row in table.rows[:_SHOWN]:
        shown.add_row(*_cells(*row, names)[:-1])
    if more := len(table.rows) - _SHOWN:
        shown.caption = f"and {more} more" if more > 0 else None
    return shown


def chosen_note(run: RunDir) -> list[str]:
    """Say in a run's report which sweep has chosen it, and out of how many."""
    notes = []
    for path in sorted((run.path.absolute().parent / "sweeps").glob("*/table.json")):
        with suppress(*UNREADABLE):
            table = read_json(path)
            if table["chosen"] == run.path.name:
                looked = counted(int(table["looked_at"]), "configuration")
                notes.append(f"Chosen by its dev scores out of {looked}, which are in sweeps/{path.parent.name}/table.md.")
    return notes


def _names(table: SweepTable) -> list[str]:
    return list(dict.fromkeys(name for configuration, _ in table.rows for name in configuration.values))


def _cells(configuration: Configuration, end: End | None, names: Sequence[str]) -> list[str]:
    values = [format_value(configuration.values.get(name)) for name in names]
    score, spread = "-", ""
    if end is not None and end.dev:
        score, spread = markdown.format_score(fmean(end.dev.values())), _spread(end.dev)
    state = "open" if end is None else end.state + (f" after {counted(len(end.dev), 'trial')}" * (end.state == "pruned"))
    state += f": {end.error}" if end and end.error else ""
    return [str(configuration.number), *values, score, spread, markdown.one_line(state)[:100], (end and end.run) or ""]


def _spread(dev: Mapping[Trial, float]) -> str:
    return markdown.format_score(stdev(dev.values())) if len(dev) > 1 else "-"


def _row_json(configuration: Configuration, end: End | None) -> dict[str, Any]:
    dev = [{"seed": trial.seed, "fold": trial.fold, "uar": score} for trial, score in sorted(end.dev.items())] if end else []
    return {
        "number": configuration.number,
        "values": dict(configuration.values),
        "state": end.state if end else "open",
        "dev_uar": end.score if end else None,
        "dev": dev,
        "run": end.run if end else None,
        "seconds": end.seconds if end else None,
        "error": end.error if end else None,
    }


def format_value(value: Any) -> str:
    """Format a setting's value for a cell."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={format_value(each)}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
